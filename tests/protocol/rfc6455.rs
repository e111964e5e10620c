//! RFC 6455, byte by byte, at the echo that is made of the gateway's own connection code: framing, fragments, control
//! frames, UTF-8, close codes, limits. One case a line: what is sent, what must come.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const MAX: usize = 16 * 1024 * 1024;

async fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(portcullis::echo::serve(listener, MAX));
    address
}

struct Raw(TcpStream);

/// What came: opcode and payload; or the end.
type Frame = Option<(u8, Vec<u8>)>;

impl Raw {
    async fn open(address: std::net::SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![];
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        assert!(!head.to_lowercase().contains("extensions"), "{head}");
        Self(stream)
    }

    async fn send(&mut self, bytes: &[u8]) {
        // The other end may have closed already: the next read tells.
        let _ = self.0.write_all(bytes).await;
    }

    async fn next(&mut self) -> Frame {
        let read = async {
            let first = self.0.read_u8().await.ok()?;
            assert_eq!(first & 0x70, 0, "reserved bits");
            assert_ne!(first & 0x80, 0, "answers are not fragmented");
            let length = match self.0.read_u8().await.ok()? {
                126 => u64::from(self.0.read_u16().await.ok()?),
                127 => self.0.read_u64().await.ok()?,
                short => {
                    assert!(short < 126, "a server masks nothing");
                    u64::from(short)
                }
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((first & 0x0f, payload))
        };
        tokio::time::timeout(Duration::from_secs(30), read)
            .await
            .expect("something comes")
    }

    /// The close code that comes, and that the socket ends after it.
    async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Some((8, payload)) => {
                    let code = payload
                        .first_chunk::<2>()
                        .map_or(1005, |c| u16::from_be_bytes(*c));
                    assert_eq!(self.next().await, None, "nothing follows a close");
                    return code;
                }
                Some(_) => {}
                None => return 1006,
            }
        }
    }
}

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A masked frame; the first byte is FIN, reserved bits and opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | u8::try_from(short).unwrap()),
        wide @ 126..65_536 => {
            bytes.push(0x80 | 0x7e);
            bytes.extend(u16::try_from(wide).unwrap().to_be_bytes());
        }
        wide => {
            bytes.push(0x80 | 127);
            bytes.extend((wide as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().enumerate().map(|(at, b)| b ^ MASK[at % 4]));
    bytes
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes()[..], reason].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_size_and_cut_come_back_whole() {
    let address = echo().await;
    let mut raw = Raw::open(address).await;
    for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 1 << 20, MAX] {
        for (opcode, byte) in [(1, b'*'), (2, 0xfe)] {
            let payload = vec![byte; size];
            // What is sent must be read meanwhile: neither end holds 16 MiB for the other.
            let bytes = frame(0x80 | opcode, &payload);
            let (mut read, mut write) = raw.0.into_split();
            let sending = tokio::spawn(async move {
                write.write_all(&bytes).await.unwrap();
                write
            });
            let mut head = vec![
                0;
                if size < 126 {
                    2
                } else if size < 65_536 {
                    4
                } else {
                    10
                }
            ];
            read.read_exact(&mut head).await.unwrap();
            assert_eq!(head[0], 0x80 | opcode);
            let mut back = vec![0; size];
            read.read_exact(&mut back).await.unwrap();
            assert!(back == payload, "{size}");
            raw = Raw(read.reunite(sending.await.unwrap()).unwrap());
        }
    }
    // Byte by byte, and many at once.
    for byte in frame(0x81, "k\u{f6}\u{1f980}".as_bytes()) {
        raw.send(&[byte]).await;
    }
    assert_eq!(
        raw.next().await,
        Some((1, "k\u{f6}\u{1f980}".as_bytes().to_vec()))
    );
    let many: Vec<u8> = (0..500_u32)
        .flat_map(|n| frame(0x82, &n.to_be_bytes()))
        .collect();
    raw.send(&many).await;
    for n in 0..500_u32 {
        assert_eq!(raw.next().await, Some((2, n.to_be_bytes().to_vec())));
    }
    // In fragments, empty ones among them, with pings between.
    for part in [
        frame(0x01, b""),
        frame(0x00, "\u{1f980}".as_bytes().split_at(2).0),
        frame(0x89, b"ping"),
        frame(0x00, b""),
        frame(0x80, "\u{1f980}".as_bytes().split_at(2).1),
    ] {
        raw.send(&part).await;
    }
    assert_eq!(raw.next().await, Some((10, b"ping".to_vec())));
    assert_eq!(raw.next().await, Some((1, "\u{1f980}".as_bytes().to_vec())));
    // An unasked pong says nothing.
    raw.send(&frame(0x8a, b"pong")).await;
    raw.send(&frame(0x89, &[7; 125])).await;
    assert_eq!(raw.next().await, Some((10, vec![7; 125])));
    raw.send(&close(1000, b"bye")).await;
    assert_eq!(raw.closed().await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_framing_is_closed_with_1002() {
    let address = echo().await;
    let mut unmasked = frame(0x81, b"abc");
    unmasked[1] &= 0x7f;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("reserved bit 1", frame(0xc1, b"a")),
        ("reserved bit 2", frame(0xa1, b"a")),
        ("reserved bit 3", frame(0x91, b"a")),
        ("reserved bit on a ping", frame(0xc9, b"")),
        ("opcode 3", frame(0x83, b"")),
        ("opcode 7", frame(0x87, b"a")),
        ("opcode 11", frame(0x8b, b"")),
        ("opcode 15", frame(0x8f, b"a")),
        ("unmasked", unmasked),
        ("ping of 126", frame(0x89, &[0; 126])),
        ("fragmented ping", frame(0x09, b"a")),
        ("fragmented close", frame(0x08, b"")),
        ("continues nothing", frame(0x80, b"a")),
        ("continues nothing, not final", frame(0x00, b"a")),
        (
            "text within text",
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
        ),
        (
            "bytes within text",
            [frame(0x01, b"a"), frame(0x82, b"b")].concat(),
        ),
        ("close of one byte", frame(0x88, &[3])),
        ("close of 126", frame(0x88, &[3; 126])),
        ("close 0", close(0, b"")),
        ("close 999", close(999, b"")),
        ("close 1004", close(1004, b"")),
        ("close 1005", close(1005, b"")),
        ("close 1006", close(1006, b"")),
        ("close 1016", close(1016, b"")),
        ("close 2999", close(2999, b"")),
        ("close 5000", close(5000, b"")),
        ("close 65535", close(65_535, b"")),
    ];
    let mut failed = vec![];
    for (name, bytes) in cases {
        let mut raw = Raw::open(address).await;
        raw.send(&bytes).await;
        let code = raw.closed().await;
        if code != 1002 {
            failed.push(format!("{name}: {code}"));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_answered_with_its_code_and_ends_the_socket() {
    let address = echo().await;
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999,
    ] {
        let mut raw = Raw::open(address).await;
        raw.send(&close(code, b"reason")).await;
        assert_eq!(raw.closed().await, code);
    }
    let mut raw = Raw::open(address).await;
    raw.send(&frame(0x88, b"")).await;
    assert_eq!(raw.closed().await, 1005);
    // What follows a close is not answered.
    let mut raw = Raw::open(address).await;
    raw.send(&[close(1000, b""), frame(0x81, b"late"), frame(0x89, b"late")].concat())
        .await;
    assert_eq!(raw.next().await, Some((8, 1000_u16.to_be_bytes().to_vec())));
    assert_eq!(raw.next().await, None);
    // The longest reason.
    let mut raw = Raw::open(address).await;
    raw.send(&close(1000, &[b'*'; 123])).await;
    assert_eq!(raw.closed().await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_utf_8_is_closed_with_1007_at_its_first_wrong_octet() {
    let address = echo().await;
    for wrong in [
        &[0x80][..],
        &[0xbf],
        &[0xfe],
        &[0xff],
        &[0xc0],
        &[0xc1],
        &[0xf5],
        &[0xe0, 0x80],
        &[0xed, 0xa0],
        &[0xf0, 0x80],
        &[0xf4, 0x90],
        &[0xce, 0x41],
    ] {
        // Whole.
        let mut raw = Raw::open(address).await;
        raw.send(&frame(0x81, &[b"ok", wrong].concat())).await;
        assert_eq!(raw.closed().await, 1007, "{wrong:x?}");
        // A megabyte is announced, and its first wrong octet is all that is sent of it.
        let mut raw = Raw::open(address).await;
        let long = frame(0x81, &[b"ok", wrong, &vec![b'a'; 1 << 20]].concat());
        raw.send(&long[..14 + 2 + wrong.len()]).await;
        assert_eq!(raw.closed().await, 1007, "{wrong:x?} at once");
        // In a message that goes on over frames.
        let mut raw = Raw::open(address).await;
        raw.send(&frame(0x01, b"ok")).await;
        raw.send(&frame(0x00, wrong)).await;
        assert_eq!(raw.closed().await, 1007, "{wrong:x?} in a fragment");
    }
    // Cut short.
    for short in [&[0xce][..], &[0xe1, 0xbd], &[0xf0, 0x9f, 0xa6]] {
        let mut raw = Raw::open(address).await;
        raw.send(&frame(0x81, short)).await;
        assert_eq!(raw.closed().await, 1007, "{short:x?}");
    }
    let mut raw = Raw::open(address).await;
    raw.send(&close(1000, &[0xff])).await;
    assert_eq!(raw.closed().await, 1007);
    // Every character there is, and bytes that are no text.
    let all: String = (0..=0x10_ffff)
        .step_by(0x101)
        .filter_map(char::from_u32)
        .collect();
    let mut raw = Raw::open(address).await;
    raw.send(&frame(0x81, all.as_bytes())).await;
    assert_eq!(raw.next().await, Some((1, all.into_bytes())));
    raw.send(&frame(0x82, &[0xff, 0xc0])).await;
    assert_eq!(raw.next().await, Some((2, vec![0xff, 0xc0])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_closed_with_1009_at_its_header() {
    let address = echo().await;
    for announced in [MAX as u64 + 1, 1 << 40, u64::MAX / 2] {
        let mut raw = Raw::open(address).await;
        let mut head = vec![0x82, 0x80 | 127];
        head.extend(announced.to_be_bytes());
        head.extend(MASK);
        raw.send(&head).await;
        assert_eq!(raw.closed().await, 1009, "{announced}");
    }
    // In fragments too.
    let mut raw = Raw::open(address).await;
    raw.send(&frame(0x02, &vec![0; MAX - 1])).await;
    raw.send(&frame(0x80, &[0; 2])).await;
    assert_eq!(raw.closed().await, 1009);
}
