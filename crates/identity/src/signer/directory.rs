//! The directory in which a signer keeps its root, or finds the intermediate that was plugged in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use webpki::KeyUsage;
use zeroize::Zeroizing;

use super::{Signer, SignerError, SignerSettings, make_root};
use crate::bundle::{Believed, TrustBundle};
use crate::clock::{Clock, unix};
use crate::keys::{KeyError, KeyPair};
use crate::pem;
use crate::verifier::{PeerError, verify_chain};

/// The root that we make: its key, and its certificate, which clients read too.
const ROOT_KEY: &str = "root-key.pem";
const ROOT_CERT: &str = "root-cert.pem";
/// What an operator plugs in, besides `root-cert.pem`: the names of the secret `cacerts`.
const CA_KEY: &str = "ca-key.pem";
const CA_CERT: &str = "ca-cert.pem";
const CHAIN: &str = "cert-chain.pem";

/// No file here is larger; a bundle of 64 RSA roots has some 130 KiB.
const FILE_MAX: u64 = 1 << 20;

impl Signer {
    /// Opens the CA of a directory, which is made if there is none.
    ///
    /// With `ca-key.pem` or `ca-cert.pem` in it, it holds a plugged-in intermediate, and then also `cert-chain.pem` (what
    /// leads from it to the root; the root itself may stand in it) and `root-cert.pem` (one or more roots). Otherwise it
    /// holds our own root, `root-key.pem` and `root-cert.pem`, made where it does not stand yet: the directory with mode
    /// 0700, the key with 0600, each file whole or not at all, even if two programs begin at once.
    ///
    /// A key that others may read is not used. A plugged-in one may be readable by its group, as Kubernetes mounts it.
    /// Blocks on the file system.
    pub fn open(dir: &Path, settings: SignerSettings, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        if dir.join(CA_KEY).exists() || dir.join(CA_CERT).exists() {
            open_plugged_in(dir, settings, clock)
        } else {
            open_own(dir, settings, clock)
        }
    }
}

fn open_plugged_in(dir: &Path, settings: SignerSettings, clock: Arc<dyn Clock>) -> Result<Signer, OpenError> {
    let missing: Vec<_> =
        [CA_CERT, CA_KEY, CHAIN, ROOT_CERT].into_iter().filter(|f| !dir.join(f).exists()).collect();
    if !missing.is_empty() {
        return Err(OpenError::Missing { dir: dir.to_owned(), files: missing.join(", ") });
    }
    let key_path = dir.join(CA_KEY);
    refuse_mode(&key_path, 0o037)?;
    let key = read_key(&key_path)?;
    let own = read_certificates(&dir.join(CA_CERT))?;
    let Some(own) = own.into_iter().next() else { return Err(OpenError::Certificates(dir.join(CA_CERT))) };
    let roots = read_certificates(&dir.join(ROOT_CERT))?;
    // The chain repeats the CA's certificate in some set-ups and not in others.
    let mut chain = vec![own.clone()];
    chain.extend(read_certificates(&dir.join(CHAIN))?.into_iter().filter(|c| *c != own));
    let signer = Signer::of(key, chain, roots, settings, clock)?;
    prove(&signer, dir)?;
    Ok(signer)
}

fn open_own(dir: &Path, settings: SignerSettings, clock: Arc<dyn Clock>) -> Result<Signer, OpenError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| OpenError::io(dir, e))?;
    refuse_mode(dir, 0o022)?;
    let (key_path, cert_path) = (dir.join(ROOT_KEY), dir.join(ROOT_CERT));
    if cert_path.exists() && !key_path.exists() {
        return Err(OpenError::Missing { dir: dir.to_owned(), files: ROOT_KEY.to_owned() });
    }
    if !key_path.exists() {
        let key = KeyPair::generate(settings.root_curve).map_err(|e| OpenError::Key(key_path.clone(), e))?;
        let text = key.to_pkcs8_pem().map_err(|e| OpenError::Key(key_path.clone(), e))?;
        create(&key_path, text.as_bytes(), 0o600)?;
    }
    refuse_mode(&key_path, 0o077)?;
    let key = read_key(&key_path)?;
    // A key without its certificate was left by a program that stopped in between; nobody has seen a root of it yet.
    if !cert_path.exists() {
        let root = make_root(&key, &settings, clock.now())?;
        create(&cert_path, pem::encode("CERTIFICATE", &root).as_bytes(), 0o644)?;
    }
    let roots = read_certificates(&cert_path)?;
    let own = roots.first().ok_or_else(|| OpenError::Certificates(cert_path.clone()))?.clone();
    let signer = Signer::of(key, vec![own], roots, settings, clock)?;
    prove(&signer, dir)?;
    Ok(signer)
}

/// Signs a certificate and sees whether a peer would take it: key, chain and roots belong together and hold now.
fn prove(signer: &Signer, dir: &Path) -> Result<(), OpenError> {
    let id = model::SpiffeId::new(signer.settings.trust_domain.clone(), "self", "test")
        .map_err(|_| SignerError::Chain)?;
    let key = KeyPair::generate(crate::keys::Curve::P256).map_err(SignerError::Key)?;
    let signed = signer.sign(&key.request(&id).map_err(SignerError::Key)?, &id, None)?;
    let leaf = signed.chain.first().and_then(|text| pem::certificates(text)?.into_iter().next());
    let (Some(leaf), Some(now)) = (leaf, unix(signer.clock.now())) else {
        return Err(SignerError::Chain.into());
    };
    let roots: &TrustBundle = &signer.roots;
    let believed = Believed::all(roots.clone());
    verify_chain(&leaf, &signer.intermediates, &believed, KeyUsage::client_auth(), now)
        .map_err(|source| OpenError::Mismatch { dir: dir.to_owned(), source })
}

/// Refuses a file or directory with any of the mode bits.
fn refuse_mode(path: &Path, bits: u32) -> Result<(), OpenError> {
    let mode = fs::metadata(path).map_err(|e| OpenError::io(path, e))?.mode() & 0o7777;
    if mode & bits == 0 {
        return Ok(());
    }
    Err(OpenError::Mode { path: path.to_owned(), mode, remedy: mode & !bits })
}

fn read(path: &Path) -> Result<Zeroizing<String>, OpenError> {
    let length = fs::metadata(path).map_err(|e| OpenError::io(path, e))?.len();
    if length > FILE_MAX {
        return Err(OpenError::io(path, io::ErrorKind::FileTooLarge.into()));
    }
    fs::read_to_string(path).map(Zeroizing::new).map_err(|e| OpenError::io(path, e))
}

fn read_key(path: &Path) -> Result<KeyPair, OpenError> {
    KeyPair::from_pem(&read(path)?).map_err(|e| OpenError::Key(path.to_owned(), e))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let found = pem::certificates(&read(path)?).filter(|c| !c.is_empty());
    found.ok_or_else(|| OpenError::Certificates(path.to_owned()))
}

/// Writes a new file whole or not at all. Where one came to stand meanwhile, that one stays.
fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), OpenError> {
    let error = |e| OpenError::io(path, e);
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = dir.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let removed = remove_if_there(&draft);
    written.and(removed).map_err(error)?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(error)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Why a directory gives no CA.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file system failed.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Others may read the key, or write to the directory.
    #[error("{path} has mode {mode:04o}, which opens it to others: run `chmod {remedy:04o} {path}`", path = .path.display())]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it may have.
        remedy: u32,
    },
    /// Some files are there and others are not.
    #[error("{dir} lacks {files}", dir = .dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// The files.
        files: String,
    },
    /// No private key in a file.
    #[error("{path}: {1}", path = .0.display())]
    Key(PathBuf, #[source] KeyError),
    /// No certificates in a file.
    #[error("{path} holds no readable certificate", path = .0.display())]
    Certificates(PathBuf),
    /// The key, the chain and the roots do not belong together, or have expired.
    #[error("what {dir} would sign convinces nobody: do its key, chain and roots belong together?", dir = .dir.display())]
    Mismatch {
        /// The directory.
        dir: PathBuf,
        /// What a peer would say.
        source: PeerError,
    },
    /// The CA cannot sign.
    #[error(transparent)]
    Signer(#[from] SignerError),
}

impl OpenError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
