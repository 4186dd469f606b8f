//! What passes an interface, by tcpdump.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running capture of one interface.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

/// What a capture saw.
#[derive(Debug)]
pub struct Packets {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Capture {
    pub(super) fn start(netns: &str, interface: &str, file: PathBuf) -> Self {
        let mut tcpdump = Command::new("nsenter")
            .arg(format!("--net={netns}"))
            .args(["tcpdump", "-i", interface, "-n", "-U", "--immediate-mode", "-s", "0", "-w"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start tcpdump (Debian package `tcpdump`)");
        // It tells when it has begun.
        let mut said = BufReader::new(tcpdump.stderr.take().expect("a pipe")).lines();
        let listening = said.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        assert!(listening, "tcpdump did not begin on {interface}");
        // It must not block on a full pipe later on.
        std::thread::spawn(move || said.for_each(drop));
        Self { tcpdump, file }
    }

    /// Ends the capture and reads it.
    pub fn stop(mut self) -> Packets {
        self.end();
        let bytes = std::fs::read(&self.file).expect("read the capture");
        Packets { file: self.file.clone(), bytes }
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.tcpdump.id())
            && matches!(self.tcpdump.try_wait(), Ok(None))
        {
            // SIGINT makes tcpdump write out what it has.
            if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGINT) {
                crate::say(&format!("cannot end tcpdump: {error}"));
            }
            drop(self.tcpdump.wait());
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

impl Packets {
    /// Whether the bytes of `text` passed in one packet, readable.
    pub fn contain(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// How many packets match a capture filter (pcap-filter(7)).
    pub fn count(&self, filter: &str) -> usize {
        read(&self.file, filter).lines().count()
    }

    /// The packets that match a capture filter, a line each.
    pub fn list(&self, filter: &str) -> String {
        read(&self.file, filter)
    }
}

fn read(file: &Path, filter: &str) -> String {
    let output =
        Command::new("tcpdump").arg("-n").arg("-r").arg(file).arg(filter).output().expect("run tcpdump");
    assert!(output.status.success(), "tcpdump -r: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
