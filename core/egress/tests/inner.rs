//! Requests inside TLS that is opened: what two readers could read differently is refused, and a secret is in one header of one request.

use super::*;
use crate::egress::inner::{InnerError, Request, odd};
use crate::seal::Secret;

fn read(text: &str) -> Result<Request, InnerError> {
    Request::read(text.as_bytes(), &host("api.example.com"), 443).map(|read| read.expect("whole").0)
}

fn entries(text: &str) -> Vec<Termination> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(deserialize_with = "terminations")]
        terminate: Option<Terminations>,
    }
    let file: File = toml::from_str(text).unwrap();
    file.terminate.unwrap().of(&host("api.example.com"), 443)
}

fn github() -> Vec<Termination> {
    entries(
        "terminate = [{ host = 'api.example.com', secret = { vault = 'GH' }, header = 'X-Api-Key', format = 'Bearer {}', methods = ['GET'], paths = ['/repos/', '/user'] }]",
    )
}

#[test]
fn the_header_of_a_secret_is_the_gateways_alone() {
    let request = read(
        "GET /repos/a?b=/../c HTTP/1.1\r\nHost: api.example.com\r\nx-api-key: mine\r\nX_API_KEY: mine too\r\nAccept: */*\r\n\
         Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nAccept-Encoding: gzip\r\nRange: bytes=0-4\r\nIf-Range: x\r\n\r\n",
    )
    .unwrap();
    let put = [("X-Api-Key", Secret::new(b"Bearer s3cret".to_vec()))];
    let forward = request.forward(&host("api.example.com"), 443, &github(), &put);
    let expected = "GET /repos/a?b=/../c HTTP/1.1\r\nHost: api.example.com\r\nAccept: */*\r\nX-Api-Key: Bearer s3cret\r\n\
                    Accept-Encoding: identity\r\nVia: 1.1 portcullis\r\nConnection: close\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(forward.expose()), expected);
    // Without a secret none of the client's stands in its place.
    let without = request.forward(&host("api.example.com"), 443, &github(), &[]);
    assert!(
        !String::from_utf8_lossy(without.expose())
            .to_lowercase()
            .contains("mine")
    );
}

/// What servers and proxies were made to read differently with.
#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    let get = "GET /repos/a HTTP/1.1\r\nHost: api.example.com\r\n";
    let post = "POST /repos/a HTTP/1.1\r\nHost: api.example.com\r\n";
    for (text, word) in [
        (
            format!("{post}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "body-length",
        ),
        (
            format!("{post}Content-Length: 3\r\nContent-Length: 3\r\n\r\n"),
            "body-length",
        ),
        (format!("{post}Content-Length: 3, 3\r\n\r\n"), "body-length"),
        (format!("{post}Content-Length: +3\r\n\r\n"), "body-length"),
        (format!("{post}Content-Length: 0x3\r\n\r\n"), "body-length"),
        (
            format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n"),
            "body-length",
        ),
        (
            format!("{post}Transfer-Encoding: xchunked\r\n\r\n"),
            "body-length",
        ),
        (
            format!("{post}Transfer-Encoding: identity\r\n\r\n"),
            "body-length",
        ),
        (
            format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"),
            "body-length",
        ),
        (
            format!("{post}Transfer-Encoding\u{b}: chunked\r\n\r\n"),
            "head-malformed",
        ),
        (
            format!("{post}Transfer-Encoding : chunked\r\n\r\n"),
            "head-malformed",
        ),
        (
            format!("{post}X: a\r\n Transfer-Encoding: chunked\r\n\r\n"),
            "head-malformed",
        ),
        (
            format!("{post}X: a\nTransfer-Encoding: chunked\r\n\r\n"),
            "head-malformed",
        ),
        (
            format!("{post}X: a\rTransfer-Encoding: chunked\r\n\r\n"),
            "head-malformed",
        ),
        (format!("{get}X: a\0b\r\n\r\n"), "head-malformed"),
        (
            format!("{get}Host: api.example.com\r\n\r\n"),
            "head-malformed",
        ),
        ("GET /repos/a HTTP/1.1\r\n\r\n".to_owned(), "head-malformed"),
        ("GET /repos/a HTTP/1.0\r\n\r\n".to_owned(), "head-malformed"),
        (
            "GET /repos/a HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(),
            "host-mismatch",
        ),
        (
            "GET /repos/a HTTP/1.1\r\nHost: api.example.com:8443\r\n\r\n".to_owned(),
            "host-mismatch",
        ),
        (
            "GET /repos/a HTTP/1.1\r\nHost: x@api.example.com\r\n\r\n".to_owned(),
            "host-malformed",
        ),
        (
            "GET https://evil.example/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "target-form",
        ),
        (
            "GET http://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "target-form",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "target-form",
        ),
        (
            "CONNECT evil.example:443 HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "method",
        ),
        (
            "TRACE / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "method",
        ),
        (
            "TRACK / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "method",
        ),
        (
            "GET /a HTTP/2.0\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "head-malformed",
        ),
        (
            "GET /a  HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "head-malformed",
        ),
        (
            "GET /a#b HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned(),
            "head-malformed",
        ),
        (
            format!("{get}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
            "upgrade",
        ),
        (format!("{get}HTTP2-Settings: x\r\n\r\n"), "upgrade"),
        (
            format!("{get}X-HTTP-Method-Override: DELETE\r\n\r\n"),
            "override",
        ),
        (
            format!("{get}X_HTTP_METHOD_OVERRIDE: DELETE\r\n\r\n"),
            "override",
        ),
        (format!("{get}X-Original-URL: /admin\r\n\r\n"), "override"),
        (format!("{get}X-Original-URI: /admin\r\n\r\n"), "override"),
        (format!("{get}x_original_path: /admin\r\n\r\n"), "override"),
        (format!("{get}X-Rewrite-URL: /admin\r\n\r\n"), "override"),
        (format!("{get}X-HTTP-Method: DELETE\r\n\r\n"), "override"),
        (
            format!("{get}X-Method-Override: DELETE\r\n\r\n"),
            "override",
        ),
        // The bugs: each was passed on.
        (
            format!("{get}X.HTTP.Method.Override: DELETE\r\n\r\n"),
            "override",
        ),
        (format!("{get}X!HTTP~Method: DELETE\r\n\r\n"), "override"),
        (format!("{get}X-Matched-Path: /admin\r\n\r\n"), "override"),
        (format!("{get}X-Host: evil.example\r\n\r\n"), "override"),
        (
            format!("{get}X-HTTP-Host-Override: evil.example\r\n\r\n"),
            "override",
        ),
        (
            format!("{get}X-HTTP-DestinationURL: http://evil.example/\r\n\r\n"),
            "override",
        ),
    ] {
        assert_eq!(
            read(&text).map_err(|error| error.word()),
            Err(word),
            "{text:?}"
        );
    }
    for path in [
        "/repos/../user",
        "/repos/..",
        "/./a",
        "/repos//a",
        "//evil.example/",
        "/repos/%2e%2e/user",
        "/repos/%2E./a",
        "/repos%2fa",
        "/repos%5ca",
        "/repos\\..\\user",
        "/repos/%252e%252e/",
        "/repos/..;/user",
        "/repos/a%00",
        "/repos/a%0d%0aX",
        "/a%",
        "/a%zz",
        "/a%3f",
        "/repos/%c0%ae%c0%ae/user",
        "/repos/%e0%80%af..",
        "/a%ff",
        "/repos/..%20/user",
        "/repos/.%20./user",
        "/repos/%20..",
        "/repos/.../user",
        "/repos/..%c2%a0/user",
        "/repos/%ef%bc%8e%ef%bc%8e/user",
        "/repos/..%ef%bc%8fuser",
        "/repos%e2%88%95user",
        "/repos/%ef%b8%b0/admin",
        "/repos/%cd%be",
        "/repos/%e2%92%88/x",
        "/a%c2%85",
        "/a%25%32%65",
        "/repos/a;b=c",
        "/a%09",
        "/a%7f",
        // The bugs: code pages make one of those of them.
        "/repos/..%c2%a5..%c2%a5admin",
        "/repos/..%e2%82%a9admin",
        "/repos/%d9%aa2e%d9%aa2e/admin",
        "/repos/a%d6%89b",
        "/repos/..%e2%83%a5admin",
    ] {
        assert!(odd(path).is_some(), "{path}");
        let text = format!("GET {path} HTTP/1.1\r\nHost: api.example.com\r\n\r\n");
        assert_eq!(
            read(&text).map_err(|error| error.word()),
            Err("path"),
            "{path}"
        );
    }
    for path in [
        "/",
        "/repos/a",
        "/repos/a.b/..c/c..",
        "/a%E2%82%AC/%F0%9F%98%80",
        "/a%20b",
        "/a%C3%BC",
        "/~a/b:c@d",
    ] {
        assert_eq!(odd(path), None, "{path}");
    }
}

/// What was asked before this proxy is nobody's word here, and a query that names a method is told.
#[test]
fn what_proxies_say_of_a_request_goes_no_further() {
    let request = read(
        "GET /repos/a HTTP/1.1\r\nHost: api.example.com\r\nX-Forwarded-Host: evil.example\r\nX_Forwarded_Prefix: /../x\r\n\
         X-Forwarded-Uri: /admin\r\nForwarded: host=evil.example\r\nX-Forward: kept\r\n\r\n",
    )
    .unwrap();
    let forward = request.forward(&host("api.example.com"), 443, &github(), &[]);
    let text = String::from_utf8_lossy(forward.expose()).to_lowercase();
    assert!(
        !text.contains("forwarded") && text.contains("x-forward: kept\r\n"),
        "{text}"
    );
    for (query, is_named) in [
        ("?_method=DELETE", true),
        ("?a=b&_METHOD=delete", true),
        ("?a;%5fmethod=x", true),
        ("?_method[]=x", true),
        ("?%5Fme%74hod%5B%5D=x", true),
        ("?X-HTTP-Method-Override=PUT", true),
        // The bugs: PHP reads each as `_method`, or did.
        ("?.method=PUT", true),
        ("?%2emethod=PUT", true),
        ("?+.method=PUT", true),
        ("?%20_method=PUT", true),
        ("?a=b&[method=PUT", true),
        ("?_method%00a=PUT", true),
        ("?_method%00[a]=PUT", true),
        ("?http.method=PUT", true),
        ("?+method[a]=PUT", true),
        ("?x_http_method=PUT", true),
        ("?+_method=x", true),
        ("?method=GET", false),
        ("?a=_method", false),
        ("?a_method=x", false),
        ("?%", false),
        ("", false),
    ] {
        let text = format!("GET /repos/a{query} HTTP/1.1\r\nHost: api.example.com\r\n\r\n");
        assert_eq!(read(&text).unwrap().names_method(), is_named, "{query}");
    }
}

#[test]
fn a_secret_belongs_to_its_methods_and_paths_and_no_others() {
    let [entry] = &github()[..] else { panic!() };
    for (method, path, is_for) in [
        ("GET", "/repos/a", true),
        ("GET", "/repos/", true),
        ("GET", "/user", true),
        ("GET", "/repos", false),
        ("GET", "/reposX/a", false),
        ("GET", "/user/", false),
        ("GET", "/user/x", false),
        ("GET", "/users", false),
        ("GET", "/", false),
        ("GET", "/x/repos/a", false),
        ("GET", "/REPOS/a", false),
        ("POST", "/repos/a", false),
        ("get", "/repos/a", false),
        ("HEAD", "/user", false),
    ] {
        assert_eq!(entry.is_for(method, path), is_for, "{method} {path}");
    }
    let value = |format: &str, secret: &[u8]| {
        let text = format!(
            "terminate = [{{ host = 'api.example.com', secret = {{ vault = 'GH' }}, header = 'A', format = '{format}', methods = ['GET'], paths = ['/'] }}]"
        );
        let value = entries(&text)[0].value(&Secret::new(secret.to_vec()));
        value.map(|value| String::from_utf8(value.expose().to_vec()).unwrap())
    };
    assert_eq!(
        value("Bearer {}", b"12345678").as_deref(),
        Some("Bearer 12345678")
    );
    assert_eq!(
        value("Basic {base64}", b"user:pass\n1").as_deref(),
        Some("Basic dXNlcjpwYXNzCjE=")
    );
    for bad in [
        &b"1234567"[..],
        b"12345678\n",
        b"1234\r\n5678",
        b" 12345678",
        b"12345678\xff",
        b"",
    ] {
        assert_eq!(value("{}", bad), None, "{bad:?}");
    }
}

#[test]
fn what_is_no_entry_is_told_and_a_secret_is_never_repeated() {
    let read = |entry: &str| {
        #[derive(Debug, serde::Deserialize)]
        struct File {
            #[serde(deserialize_with = "terminations")]
            #[expect(dead_code)]
            terminate: Option<Terminations>,
        }
        toml::from_str::<File>(&format!("terminate = [{entry}]"))
            .map_err(|error| error.message().to_owned())
    };
    let entry = |host: &str,
                 secret: &str,
                 header: &str,
                 format: &str,
                 methods: &str,
                 paths: &str| {
        format!(
            "{{ host = '{host}', secret = {secret}, header = '{header}', format = '{format}', methods = {methods}, paths = {paths} }}"
        )
    };
    let gh = "{ vault = 'GH' }";
    let good = entry(
        "a.example:443",
        gh,
        "Authorization",
        "Bearer {}",
        "['GET']",
        "['/']",
    );
    read(&good).unwrap();
    read("'-'").unwrap();
    read("").unwrap();
    for (entry, words) in [
        (
            entry("*.a.example", gh, "A", "{}", "['GET']", "['/']"),
            "host",
        ),
        (
            entry("192.0.2.7", gh, "A", "{}", "['GET']", "['/']"),
            "host",
        ),
        (
            entry(
                "a.example",
                "'hunter2hunter2'",
                "A",
                "{}",
                "['GET']",
                "['/']",
            ),
            "does not stand in the configuration",
        ),
        (
            entry(
                "a.example",
                "{ vault = 'hunter2hunter2' }",
                "A",
                "{}",
                "['GET']",
                "['/']",
            ),
            "secret",
        ),
        (
            entry("a.example", gh, "Host", "{}", "['GET']", "['/']"),
            "header",
        ),
        (
            entry(
                "a.example",
                gh,
                "Transfer-Encoding",
                "{}",
                "['GET']",
                "['/']",
            ),
            "header",
        ),
        (
            entry("a.example", gh, "A:", "{}", "['GET']", "['/']"),
            "header",
        ),
        (
            entry(
                "a.example",
                gh,
                "A",
                "Bearer hunter2hunter2",
                "['GET']",
                "['/']",
            ),
            "format",
        ),
        (
            entry("a.example", gh, "A", "{} {}", "['GET']", "['/']"),
            "format",
        ),
        (
            entry("a.example", gh, "A", "{}", "['TRACE']", "['/']"),
            "methods",
        ),
        (
            entry("a.example", gh, "A", "{}", "['get']", "['/']"),
            "methods",
        ),
        (entry("a.example", gh, "A", "{}", "[]", "['/']"), "methods"),
        (
            entry("a.example", gh, "A", "{}", "['GET']", "['repos']"),
            "paths",
        ),
        (
            entry("a.example", gh, "A", "{}", "['GET']", "['/a/../b']"),
            "paths",
        ),
        (
            entry("a.example", gh, "A", "{}", "['GET']", "['/a%2f']"),
            "paths",
        ),
        (entry("a.example", gh, "A", "{}", "['GET']", "[]"), "paths"),
        (
            format!(
                "{good}, {}",
                entry(
                    "a.example:443",
                    "{ vault = 'OTHER' }",
                    "authorization",
                    "{}",
                    "['GET']",
                    "['/b']"
                )
            ),
            "two entries",
        ),
        (format!("{good}, '-'"), "alone"),
        ("'a.example'".to_owned(), "table"),
    ] {
        let error = read(&entry).unwrap_err();
        assert!(error.contains(words), "{entry}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
