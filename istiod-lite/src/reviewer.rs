//! Who a bearer token belongs to.
//!
//! A reviewer is an [`xds::server::Authenticator`]; here is the one for machines without Kubernetes, which knows tokens
//! from a file. The file holds hashes, so that reading it does not let anyone in.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use thiserror::Error;
use xds::server::{AuthenticateError, Authenticator, Peer};

/// Tokens of a file, a YAML or JSON list of `{token_sha256, service_account, namespace, node}`. It is read anew when it
/// changes; a bad state of it changes nothing.
#[derive(Debug)]
pub struct StaticTokens {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stamp: Option<Stamp>,
    tokens: Arc<[Known]>,
}

/// What tells two states of a file apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

#[derive(Debug)]
struct Known {
    hash: [u8; 32],
    peer: Peer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Token {
    token_sha256: String,
    service_account: String,
    namespace: String,
    node: Option<String>,
}

/// Why a token file is of no use.
#[derive(Debug, Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds something else than tokens.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Content(Vec<manifest::Problem>),
    /// One of its tokens is none.
    #[error("{}: token {}: {reason}", path.display(), index + 1)]
    Token {
        /// The file.
        path: PathBuf,
        /// Which one, from 0.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

impl StaticTokens {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or does not hold what it should.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, TokenFileError> {
        let path = path.into();
        let stamp = stamp(&path);
        let tokens = load(&path)?;
        Ok(Self { path, state: Mutex::new(State { stamp, tokens }) })
    }

    /// The tokens as the file now stands.
    fn tokens(&self) -> Arc<[Known]> {
        let now = stamp(&self.path);
        let mut state = self.state.lock();
        if now.is_some() && now != state.stamp {
            // Noted in any case: a bad file is told once, not at each call.
            state.stamp = now;
            match load(&self.path) {
                Ok(tokens) => state.tokens = tokens,
                Err(error) => tracing::warn!(%error, "the token file is bad; the tokens known before stay"),
            }
        }
        state.tokens.clone()
    }

    /// Who a token belongs to. Takes as long for every token: each known hash is compared, in constant time.
    fn peer(&self, token: &str) -> Option<Peer> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let tokens = self.tokens();
        let mut found = None;
        for known in tokens.iter() {
            let difference = known.hash.iter().zip(&hash).fold(0, |sum, (a, b)| sum | (a ^ b));
            if std::hint::black_box(difference) == 0 {
                found = Some(&known.peer);
            }
        }
        found.cloned()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(Stamp { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
}

fn load(path: &Path) -> Result<Arc<[Known]>, TokenFileError> {
    let text = fs::read_to_string(path)
        .map_err(|source| TokenFileError::Read { path: path.to_path_buf(), source })?;
    let tokens: Vec<Token> =
        manifest::read_as(path.to_string_lossy(), &text).map_err(TokenFileError::Content)?;
    let known = tokens.into_iter().enumerate().map(|(index, token)| {
        known(token).map_err(|reason| TokenFileError::Token { path: path.to_path_buf(), index, reason })
    });
    known.collect()
}

fn known(token: Token) -> Result<Known, &'static str> {
    if token.service_account.is_empty() || token.namespace.is_empty() {
        return Err("`namespace` and `service_account` must be given");
    }
    Ok(Known {
        hash: hash(&token.token_sha256).ok_or("`token_sha256` must be 64 hexadecimal digits")?,
        peer: Peer {
            namespace: token.namespace.into(),
            service_account: token.service_account.into(),
            node: token.node.filter(|node| !node.is_empty()).map(Into::into),
        },
    })
}

fn hash(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 64).then_some(())?;
    bytes.try_into().ok()
}

#[async_trait]
impl Authenticator for StaticTokens {
    async fn authenticate(&self, token: &str) -> Result<Peer, AuthenticateError> {
        self.peer(token).ok_or_else(|| AuthenticateError::Refused("it is not known".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(token: &str, account: &str) -> String {
        let hash: String = Sha256::digest(token.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        format!(
            "- {{token_sha256: '{hash}', service_account: {account}, namespace: istio-system, node: node1}}\n"
        )
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, line("secret", "ztunnel")).unwrap();
        let tokens = StaticTokens::open(file.path()).unwrap();
        let peer = tokens.peer("secret").unwrap();
        assert_eq!((&*peer.service_account, peer.node.as_deref()), ("ztunnel", Some("node1")));
        assert_eq!(tokens.peer("Secret"), None);
        assert_eq!(tokens.peer(""), None);
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.yaml");
        let replace = |text: &str| {
            fs::write(dir.path().join("new"), text).unwrap();
            fs::rename(dir.path().join("new"), &path).unwrap();
        };
        replace(&line("a", "ztunnel"));
        let tokens = StaticTokens::open(&path).unwrap();
        replace(&format!("{}{}", line("b", "waypoint"), line("c", "ztunnel")));
        assert!(tokens.peer("a").is_none());
        assert_eq!(&*tokens.peer("b").unwrap().service_account, "waypoint");
        replace("- {token: x}\n");
        assert!(tokens.peer("b").is_some());
        fs::remove_file(&path).unwrap();
        assert!(tokens.peer("b").is_some());
    }

    #[test]
    fn a_bad_file_is_told_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "- token_sha: x\n  namespace: a\n  service_account: b\n").unwrap();
        let error = StaticTokens::open(file.path()).unwrap_err().to_string();
        assert!(error.contains(":1:3: ") && error.contains("did you mean `token_sha256`?"), "{error}");
        fs::write(&file, "- {token_sha256: abc, namespace: a, service_account: b}\n").unwrap();
        assert!(StaticTokens::open(file.path()).unwrap_err().to_string().contains("64 hexadecimal"));
    }
}
