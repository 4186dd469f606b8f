//! What passed an interface: packets captured by tcpdump, read here byte by byte.
//!
//! "Encrypted" is not inferred from a port number. A call is plaintext where the canary it carried is found in a packet,
//! and TLS where the streams on the mesh's port are, from their first byte to their last, a sequence of TLS records.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::repo;

/// A running capture.
#[derive(Debug)]
pub(crate) struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

impl Capture {
    /// Captures an interface of a network namespace into a file, from now on.
    pub(crate) fn start(netns: &str, interface: &str, file: &Path) -> anyhow::Result<Self> {
        let mut tcpdump = Command::new("nsenter")
            .env("PATH", repo::path())
            .arg(format!("--net={netns}"))
            .args(["tcpdump", "-i", interface, "-n", "-U", "--immediate-mode", "-s", "0", "-w"])
            .arg(file)
            .args(["ip", "or", "ip6"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run tcpdump (Debian package tcpdump)")?;
        let stderr = tcpdump.stderr.take().context("tcpdump has no standard error")?;
        let mut said = BufReader::new(stderr).lines().map_while(Result::ok);
        // It tells when it has begun; packets before that would be missed.
        let mut complaints = Vec::new();
        let listening = said.by_ref().any(|line| {
            let begun = line.contains("listening on");
            complaints.push(line);
            begun
        });
        if !listening {
            bail!("tcpdump did not begin on {interface}: {}", complaints.join("; "));
        }
        // It must not block on a full pipe later on.
        std::thread::spawn(move || said.for_each(drop));
        Ok(Self { tcpdump, file: file.to_owned() })
    }

    /// What passed so far. The last packets may still be on their way to the file.
    pub(crate) fn so_far(&self) -> anyhow::Result<Traffic> {
        let bytes = std::fs::read(&self.file).with_context(|| self.file.display().to_string())?;
        Traffic::read(&bytes)
    }

    /// Ends the capture and reads it.
    pub(crate) fn stop(mut self) -> anyhow::Result<Traffic> {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.tcpdump.try_wait(), i32::try_from(self.tcpdump.id())) {
            // At SIGINT it writes out what it has.
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
            let _ = self.tcpdump.wait();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Captured packets.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    packets: Vec<Vec<u8>>,
    streams: BTreeMap<(SocketAddr, SocketAddr), Stream>,
}

/// One direction of a TCP connection, in order.
#[derive(Debug, Default)]
struct Stream {
    first: Option<u32>,
    segments: BTreeMap<u32, Vec<u8>>,
}

const MAGIC: u32 = 0xa1b2_c3d4;
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
const ETHERNET: u32 = 1;

impl Traffic {
    /// Reads a capture file (the classic format, as tcpdump writes it on this machine). A last packet that is not
    /// complete yet is left out.
    pub(crate) fn read(file: &[u8]) -> anyhow::Result<Self> {
        let word = |at: usize| file.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let mut traffic = Self::default();
        // tcpdump may not have written even the header yet.
        let Some(link) = word(20) else { return Ok(traffic) };
        if word(0) != Some(MAGIC) || link != ETHERNET {
            bail!("not a capture of Ethernet in this machine's byte order");
        }
        let mut at = FILE_HEADER;
        while let Some(length) = word(at + 8) {
            let begin = at + PACKET_HEADER;
            let Some(packet) = usize::try_from(length).ok().and_then(|n| file.get(begin..begin + n)) else {
                break;
            };
            traffic.take(packet);
            at = begin + packet.len();
        }
        Ok(traffic)
    }

    fn take(&mut self, packet: &[u8]) {
        self.packets.push(packet.to_vec());
        let Ok(sliced) = SlicedPacket::from_ethernet(packet) else { return };
        let (from, to) = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                (IpAddr::from(ip.header().source_addr()), IpAddr::from(ip.header().destination_addr()))
            }
            Some(NetSlice::Ipv6(ip)) => {
                (IpAddr::from(ip.header().source_addr()), IpAddr::from(ip.header().destination_addr()))
            }
            _ => return,
        };
        if let Some(TransportSlice::Tcp(tcp)) = &sliced.transport {
            let ends =
                (SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port()));
            self.streams.entry(ends).or_default().take(tcp);
        }
    }

    /// Whether a text passed in the clear, in one packet or across several of a stream.
    pub(crate) fn contains(&self, text: &str) -> bool {
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        self.packets.iter().any(|p| has(p)) || self.streams.values().any(|s| has(&s.bytes()))
    }

    /// How many TLS records with application data passed to or from a port.
    ///
    /// # Errors
    /// If anything that passed there is not TLS.
    pub(crate) fn tls_records(&self, port: u16) -> anyhow::Result<usize> {
        let mut records = 0;
        for ((from, to), stream) in &self.streams {
            if from.port() == port || to.port() == port {
                records += application_data(&stream.bytes())
                    .with_context(|| format!("{from} to {to} is not all TLS"))?;
            }
        }
        Ok(records)
    }
}

impl Stream {
    fn take(&mut self, tcp: &TcpSlice<'_>) {
        let sequence = tcp.sequence_number().wrapping_add(u32::from(tcp.syn()));
        let first = *self.first.get_or_insert(sequence);
        let offset = sequence.wrapping_sub(first);
        // A keep-alive probe repeats the byte before the first; so may a late retransmission.
        let behind = offset > u32::MAX / 2;
        if !tcp.payload().is_empty() && !behind {
            let longest = self.segments.entry(offset).or_default();
            if tcp.payload().len() > longest.len() {
                *longest = tcp.payload().to_vec();
            }
        }
    }

    /// The bytes up to the first gap, each once.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (offset, segment) in &self.segments {
            let offset = *offset as usize;
            if offset > bytes.len() {
                break;
            }
            let known = bytes.len() - offset;
            bytes.extend_from_slice(segment.get(known..).unwrap_or_default());
        }
        bytes
    }
}

const RECORD_HEADER: usize = 5;
/// RFC 8446, 5.2: 2^14 bytes and what encryption adds, at most 256.
const LONGEST_RECORD: usize = (1 << 14) + 256;
const APPLICATION_DATA: u8 = 23;

/// Counts records of application data in a stream that must consist of TLS records (RFC 8446, 5.1). The last may be cut
/// off by the end of the capture.
fn application_data(stream: &[u8]) -> anyhow::Result<usize> {
    let (mut at, mut count) = (0, 0);
    while let Some(header) = stream.get(at..at + RECORD_HEADER) {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if !(20..=23).contains(&header[0]) || header[1] != 3 || header[2] > 4 || length > LONGEST_RECORD {
            bail!("no record at byte {at}: {:02x?}", header);
        }
        count += usize::from(header[0] == APPLICATION_DATA);
        at += RECORD_HEADER + length;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn segment(sequence: u32, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 1, 1], [10, 0, 2, 1], 64)
            .tcp(40000, 15008, sequence, 1000);
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    fn capture(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [MAGIC, 0x0004_0002, 0, 0, 262_144, ETHERNET] {
            file.extend(word.to_ne_bytes());
        }
        for packet in packets {
            let length = u32::try_from(packet.len()).unwrap();
            for word in [0, 0, length, length] {
                file.extend(word.to_ne_bytes());
            }
            file.extend(packet);
        }
        file
    }

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        [&[kind, 3, 3, high, low][..], &vec![0xee; length.into()]].concat()
    }

    #[test]
    fn a_text_is_found_also_across_segments_out_of_order() {
        let packets = [segment(10, b"GET /cana"), segment(25, b"P/1.1"), segment(19, b"ry HTT")];
        let traffic = Traffic::read(&capture(&packets)).unwrap();
        assert!(traffic.contains("canary"));
        assert!(!traffic.contains("budgie"));
    }

    #[test]
    fn a_retransmission_counts_once() {
        let records = [record(22, 40), record(23, 100)].concat();
        let packets = [segment(0, &records[..60]), segment(20, &records[20..90]), segment(0, &records[..60])];
        let mut packets = packets.to_vec();
        packets.push(segment(90, &records[90..]));
        assert_eq!(Traffic::read(&capture(&packets)).unwrap().tls_records(15008).unwrap(), 1);
    }

    #[test]
    fn a_record_that_the_capture_cuts_off_is_tls_all_the_same() {
        let records = [record(23, 100), record(23, 100)].concat();
        let traffic = Traffic::read(&capture(&[segment(0, &records[..150])])).unwrap();
        assert_eq!(traffic.tls_records(15008).unwrap(), 2);
    }

    #[test]
    fn plaintext_on_the_meshs_port_is_called_out() {
        let traffic = Traffic::read(&capture(&[segment(0, b"PRI * HTTP/2.0\r\n")])).unwrap();
        assert!(traffic.tls_records(15008).unwrap_err().to_string().ends_with("is not all TLS"));
        assert_eq!(traffic.tls_records(80).unwrap(), 0);
    }

    #[test]
    fn a_packet_that_is_still_being_written_is_left_out() {
        let file = capture(&[segment(0, b"whole"), segment(5, b"half")]);
        let traffic = Traffic::read(&file[..file.len() - 1]).unwrap();
        assert!(traffic.contains("whole") && !traffic.contains("half"));
        assert!(Traffic::read(&file[..10]).unwrap().packets.is_empty());
    }
}
