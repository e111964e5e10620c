//! Where bodies end, and answers.

use super::*;

fn taken(mut body: Body, bytes: &[u8], piece: usize) -> Result<(usize, bool), BodyError> {
    let mut all = 0;
    for piece in bytes.chunks(piece.max(1)) {
        let here = body.take(piece)?;
        all += here;
        if here < piece.len() {
            break;
        }
    }
    Ok((all, body.is_over()))
}

#[test]
fn a_body_of_a_length_ends_there() {
    assert_eq!(taken(Body::none(), b"GET ", 1), Ok((0, true)));
    assert_eq!(taken(Body::of_length(0), b"GET ", 1), Ok((0, true)));
    assert_eq!(taken(Body::of_length(3), b"abcGET ", 2), Ok((3, true)));
    assert_eq!(taken(Body::of_length(9), b"abc", 2), Ok((3, false)));
}

#[test]
fn chunks_are_plain_or_none() {
    let whole = b"3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\nGET /next";
    for piece in 1..whole.len() {
        assert_eq!(
            taken(Body::chunked(), whole, piece),
            Ok((whole.len() - 9, true)),
            "{piece}"
        );
    }
    for bad in [
        &b"3;x=y\r\nabc"[..],
        b"\r\n",
        b"3\nabc",
        b" 3\r\n",
        b"-3\r\n",
        b"0x3\r\n",
        b"3\r\nabcd",
        b"0\r\nTrailer: x\r\n\r\n",
        b"fffffffffffff\r\n",
        b"ffffffffffff\r\n",
    ] {
        for piece in [1, 64] {
            assert_eq!(
                taken(Body::chunked(), bad, piece),
                Err(BodyError),
                "{bad:?}"
            );
        }
    }
}

proptest! {
    #[test]
    fn whatever_was_put_into_chunks_ends_where_it_was_ended(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
        behind in proptest::collection::vec(any::<u8>(), 0..20),
        piece in 1_usize..64,
    ) {
        let mut bytes = Vec::new();
        for part in &parts {
            bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let end = bytes.len();
        bytes.extend_from_slice(&behind);
        prop_assert_eq!(taken(Body::chunked(), &bytes, piece), Ok((end, true)));
    }
}

mod answers {
    use super::*;
    #[test]
    fn an_answer_goes_on_without_what_is_between_neighbours() {
        let text = b"HTTP/1.1 302 Found\r\nLocation: http://other.example/\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\n\
            Keep-Alive: timeout=5\r\nUpgrade: h2\r\nProxy-Authenticate: Basic\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc";
        let (answer, used) = Answer::read(text).unwrap().unwrap();
        assert_eq!((answer.status, used), (302, text.len() - 3));
        assert_eq!(
            String::from_utf8(answer.forward).unwrap(),
            "HTTP/1.1 302 Found\r\nLocation: http://other.example/\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n"
        );
        let (interim, _) = Answer::read(b"HTTP/1.1 100 Continue\r\n\r\n")
            .unwrap()
            .unwrap();
        assert!(interim.is_interim());
        assert_eq!(interim.forward, b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn what_is_no_answer_is_not_passed_on() {
        for (text, why) in [
            (&b"SSH-2.0-x\r\n\r\n"[..], AnswerError::Syntax),
            (b"HTTP/2 200\r\n\r\n", AnswerError::Syntax),
            (b"HTTP/1.1 20 x\r\n\r\n", AnswerError::Syntax),
            (b"HTTP/1.1 +20 x\r\n\r\n", AnswerError::Syntax),
            (b"HTTP/1.1 2000\r\n\r\n", AnswerError::Syntax),
            (
                b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
                AnswerError::Syntax,
            ),
            (b"HTTP/1.1 200 OK\n", AnswerError::Syntax),
            (b"HTTP/1.1 101 Switching\r\n\r\n", AnswerError::Switch),
        ] {
            assert_eq!(Answer::read(text), Err(why), "{text:?}");
        }
        assert_eq!(Answer::read(&vec![b'x'; 40_000]), Err(AnswerError::TooLong));
        assert_eq!(Answer::read(b"HTTP/1.1 200 OK\r\n"), Ok(None));
    }
}
