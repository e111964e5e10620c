//! Heads of requests.

use super::*;

fn read(text: &str) -> Result<head::Head, HeadError> {
    head::read(text.as_bytes()).map(|head| {
        let (head, used) = head.expect("whole");
        assert_eq!(used, text.find("\r\n\r\n").unwrap() + 4);
        head
    })
}

#[test]
fn a_tunnel_is_asked_for_by_connect() {
    for text in [
        "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n",
        "CONNECT API.example.com.:443 HTTP/1.1\r\nhost: api.EXAMPLE.com\r\nProxy-Connection: keep-alive\r\n\r\n",
        "CONNECT api.example.com:443 HTTP/1.0\r\n\r\n",
    ] {
        let head = read(text).unwrap();
        assert_eq!((head.host, head.port), (host("api.example.com"), 443));
        assert_eq!(head.form, Form::Connect);
    }
}

#[test]
fn a_plain_request_goes_on_in_origin_form_without_what_is_between_neighbours() {
    let head = read(
        "POST http://API.example.com:8080/a?b=c HTTP/1.1\r\nHost: api.example.com:8080\r\nUser-Agent: x\r\n\
         Connection: close, X-Secret\r\nX-Secret: 1\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: close\r\nTE: trailers\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: x\r\nKeep-Alive: 5\r\nContent-Length: 3\r\nVia: 1.1 me\r\nExpect: 100-continue\r\n\r\n",
    )
    .unwrap();
    assert_eq!((head.host, head.port), (host("api.example.com"), 8080));
    let Form::Plain { forward, body } = head.form else {
        panic!()
    };
    assert_eq!(
        String::from_utf8(forward).unwrap(),
        "POST /a?b=c HTTP/1.1\r\nHost: api.example.com:8080\r\nUser-Agent: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\
         Via: 1.1 portcullis\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(body.length(), Some(3));
    for (target, path) in [
        ("http://a.example", "/"),
        ("HTTP://a.example/", "/"),
        ("http://a.example?x", "/?x"),
        ("http://a.example:80/x", "/x"),
    ] {
        let head = read(&format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n")).unwrap();
        let Form::Plain { forward, .. } = head.form else {
            panic!()
        };
        let text = String::from_utf8(forward).unwrap();
        assert!(
            text.starts_with(&format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n")),
            "{text}"
        );
    }
}

#[test]
fn a_connection_header_takes_nothing_away_that_frames_or_names() {
    let head = read(
        "POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: host, content-length\r\nContent-Length: 5\r\n\r\n",
    )
    .unwrap();
    let Form::Plain { forward, .. } = head.form else {
        panic!()
    };
    let text = String::from_utf8(forward).unwrap();
    assert!(text.contains("Host: a.example\r\n") && text.contains("Content-Length: 5\r\n"));
}

#[test]
fn whatever_is_not_said_once_and_clearly_is_refused() {
    let get = |head: &str| format!("GET http://a.example/ HTTP/1.1\r\n{head}\r\n\r\n");
    for (text, word) in [
        (get("Host: b.example"), "host-mismatch"),
        (get("Host: a.example:81"), "host-mismatch"),
        (get("Host: a.example.b.example"), "host-mismatch"),
        (get("Host: a.example\r\nHost: a.example"), "head-malformed"),
        (get("Host: a.example\r\nhost: b.example"), "head-malformed"),
        (get("Host:"), "host-malformed"),
        (get("X: y"), "head-malformed"),
        (get("Host: a.example\r\n folded"), "head-malformed"),
        (get("Host : a.example"), "head-malformed"),
        (get("Host: a.example\r\nX\u{1}: y"), "head-malformed"),
        (get("Host: a.example\r\nX: \u{1}"), "head-malformed"),
        (
            get("Host: a.example\r\nContent-Length: 1\r\nContent-Length: 1"),
            "body-length",
        ),
        (get("Host: a.example\r\nContent-Length: +1"), "body-length"),
        (
            get("Host: a.example\r\nContent-Length: 1, 1"),
            "body-length",
        ),
        (
            get("Host: a.example\r\nTransfer-Encoding: gzip, chunked"),
            "body-length",
        ),
        (
            get("Host: a.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 1"),
            "body-length",
        ),
        (
            "GET http://a.example/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            "body-length",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "no-host",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "no-host",
        ),
        (
            "GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "scheme",
        ),
        (
            "GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "scheme",
        ),
        (
            "GET http://u@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "host-malformed",
        ),
        (
            "GET http://a.example\\@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "host-malformed",
        ),
        (
            "GET http://a.example#@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "head-malformed",
        ),
        (
            "GET http:///x HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "host-malformed",
        ),
        (
            "GET http://0x7f.1/ HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n".into(),
            "address-spelling",
        ),
        (
            "GET http://2130706433/ HTTP/1.1\r\nHost: 2130706433\r\n\r\n".into(),
            "address-spelling",
        ),
        (
            "GET http://a.example/ HTTP/2.0\r\nHost: a.example\r\n\r\n".into(),
            "head-malformed",
        ),
        (
            "GET  http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "head-malformed",
        ),
        (
            "GET http://a.example/ b HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "head-malformed",
        ),
        (
            "\r\nGET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "head-malformed",
        ),
        (
            "CONNECT a.example HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "head-malformed",
        ),
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n".into(),
            "host-mismatch",
        ),
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:80\r\n\r\n".into(),
            "host-mismatch",
        ),
        (
            "CONNECT a.example:443 HTTP/1.1\r\n\r\n".into(),
            "head-malformed",
        ),
        (
            "CONNECT https://a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "host-malformed",
        ),
        (
            "CONNECT a.example:443/ HTTP/1.1\r\nHost: a.example\r\n\r\n".into(),
            "host-malformed",
        ),
        (
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nContent-Length: 0\r\n\r\n"
                .into(),
            "body-length",
        ),
    ] {
        let error = read(&text).unwrap_err();
        assert_eq!(error.word(), word, "{text:?}: {error}");
    }
    // At once, where it could never become one.
    for text in ["GET / HTTP/1.0\n", "GET \r x", "G\0"] {
        assert!(head::read(text.as_bytes()).is_err(), "{text:?}");
    }
    let long = format!("GET http://a.example/{} ", "x".repeat(head::MOST));
    assert_eq!(head::read(long.as_bytes()), Err(HeadError::TooLong));
    let many = get(&format!(
        "Host: a.example\r\n{}X: y",
        "X: y\r\n".repeat(100)
    ));
    assert_eq!(read(&many), Err(HeadError::TooLong));
}

#[test]
fn a_head_that_is_not_whole_waits() {
    let whole = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
    for cut in 0..whole.len() {
        assert_eq!(head::read(&whole.as_bytes()[..cut]), Ok(None), "{cut}");
    }
    let with_more = format!("{whole}\u{16}\u{3}");
    let (_, used) = head::read(with_more.as_bytes()).unwrap().unwrap();
    assert_eq!(used, whole.len(), "what follows is not its");
}

proptest! {
    /// What the server gets is a request too, for the same host, and it has nothing of two readings.
    #[test]
    fn what_goes_on_reads_as_what_came(path in "[!-~&&[^#]]{0,30}", name in "[a-zA-Z-]{1,12}", value in "[ -~]{0,20}", length in any::<u32>()) {
        let text = format!("PUT http://A.example/{path} HTTP/1.1\r\nHost: a.example\r\n{name}: {value}\r\nContent-Length: {length}\r\n\r\n");
        if let Ok(Some((head, _))) = head::read(text.as_bytes()) {
            let Form::Plain { forward, body } = head.form else { panic!() };
            prop_assert_eq!(body.length(), Some(length.into()));
            let forward = String::from_utf8(forward).unwrap();
            let count = |what: &str| forward.to_ascii_lowercase().matches(what).count();
            prop_assert_eq!(count("\r\n\r\n"), 1);
            prop_assert_eq!(count("\r\nhost: "), 1);
            prop_assert_eq!(count("\r\ncontent-length: "), 1);
            prop_assert_eq!(count("\r\ntransfer-encoding: "), 0);
            let start = format!("PUT /{path} HTTP/1.1\r\nHost: a.example\r\n");
            prop_assert!(forward.starts_with(&start));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = head::read(&bytes);
        let _ = Answer::read(&bytes);
    }
}
