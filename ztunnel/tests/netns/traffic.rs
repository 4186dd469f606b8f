//! What applications do.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::thread;

use crate::node::{Node, PATIENCE};

/// How a connection went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server answered and saw this address.
    SeenAs(IpAddr),
    /// It was refused or reset.
    Reset,
    /// It ended in another way.
    Odd(String),
}

fn connect(node: &Node, from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = node.netns(from).run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()?;
    match stream.peer_addr() {
        Ok(seen) => assert_eq!(seen, to, "the application sees whom it dialled"),
        // Reset so soon that it has no peer any more.
        Err(error) if error.kind() == ErrorKind::NotConnected => {
            return Err(ErrorKind::ConnectionReset.into());
        }
        Err(error) => return Err(error),
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

fn greeting(stream: &TcpStream) -> std::io::Result<String> {
    let mut line = String::new();
    // One byte at a time would do as well: nothing follows the greeting before something was said.
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Connects to a server and says whom it saw.
pub(crate) fn ask(node: &Node, from: &str, to: SocketAddr) -> Outcome {
    match connect(node, from, to).and_then(|stream| greeting(&stream)) {
        Ok(line) => line.parse().map_or_else(|_| Outcome::Odd(format!("{line:?}")), Outcome::SeenAs),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused) => {
            Outcome::Reset
        }
        Err(e) => Outcome::Odd(e.to_string()),
    }
}

/// Sends bytes, ends its half, and returns what comes back.
pub(crate) fn exchange(node: &Node, from: &str, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Ok(mut stream) = connect(node, from, to) {
        // Whoever refuses may do so at any point.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let _ = stream.read_to_end(&mut answer);
    }
    answer
}

/// Ends the client's half before it reads the server's.
pub(crate) fn half_closed(node: &Node, from: &str, to: SocketAddr) {
    let mut stream = connect(node, from, to).unwrap();
    stream.write_all(b"all I have to say").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("all I have to say"), "{answer:?}");
}

/// Sends bytes and checks that they come back.
pub(crate) fn transfer(node: &Node, from: &str, to: SocketAddr, bytes: usize) {
    let mut stream = connect(node, from, to).unwrap();
    greeting(&stream).unwrap();
    let pattern: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let sent = pattern.clone();
    let writing = thread::spawn(move || {
        let mut left = bytes;
        while left > 0 {
            let n = left.min(sent.len());
            writer.write_all(&sent[..n]).unwrap();
            left -= n;
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut left = bytes;
    let mut buffer = vec![0; pattern.len()];
    while left > 0 {
        let n = left.min(pattern.len());
        stream.read_exact(&mut buffer[..n]).unwrap();
        assert!(buffer[..n] == pattern[..n], "the bytes are those that were sent");
        left -= n;
    }
    assert_eq!(stream.read(&mut buffer).unwrap(), 0, "and then the end");
    writing.join().unwrap();
}

/// Opens connections and keeps those that come to stand.
pub(crate) fn hold(node: &Node, from: &str, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| connect(node, from, to).ok()).collect()
}
