//! What every answer carries, and what a request must be to be looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

/// Longest form, bytes.
const FORM: usize = 16 * 1024;
/// For all of a form to arrive.
const FORM_WITHIN: Duration = Duration::from_secs(10);
/// Most fields of a form: ours have four.
const FIELDS: usize = 16;

/// An answer with every header that a browser needs to keep others out.
///
/// The referrer policy is `same-origin`, not `no-referrer`: with the latter browsers send `Origin: null` with a form
/// (Fetch standard, "append a request Origin header"), and the origin could not be checked.
pub fn answer(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
    csp: &'static str,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, csp),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("permissions-policy"),
            "camera=(), geolocation=(), microphone=()",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The policy of all but the login: nothing is run, nothing is loaded from elsewhere, nobody frames it.
pub const CSP: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; \
    frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
/// The login's: one script of ours puts the code of the address into the form.
pub const CSP_LOGIN: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Of the page between login and page: one script of ours, which asks us for a proof.
pub const CSP_SEEN: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// `text/html`.
pub const HTML: &str = "text/html; charset=utf-8";

/// To another page of ours, after a form or a missing session.
pub fn redirect(to: &'static str) -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::SEE_OTHER, HTML, "", CSP);
    response
        .headers_mut()
        .insert(header::LOCATION, HeaderValue::from_static(to));
    response
}

/// The name under which the browser reached us, if it is one of ours: a foreign name that resolves to us (DNS
/// rebinding) is refused before anything else.
pub fn allowed_host<'a>(headers: &'a HeaderMap, names: &[String], port: u16) -> Option<&'a str> {
    let mut all = headers.get_all(header::HOST).iter();
    let host = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    let name = match host.rsplit_once(':') {
        Some((name, digits))
            if digits.parse() == Ok(port) && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            name
        }
        // Browsers leave out the scheme's own port.
        _ if port == 80 || port == 443 => host,
        _ => return None,
    };
    names
        .iter()
        .any(|n| n.eq_ignore_ascii_case(name))
        .then_some(host)
}

/// Did our own page send this? The origin exactly, and what the browser says of the sender.
pub fn same_origin(headers: &HeaderMap, scheme: &str, host: &str) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.next().and_then(|o| o.to_str().ok());
    let exact = origin.is_some_and(|o| {
        o.strip_prefix(scheme)
            .and_then(|rest| rest.strip_prefix("://"))
            .is_some_and(|rest| rest.eq_ignore_ascii_case(host))
    });
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    exact && origins.next().is_none() && site.is_none_or(|s| s == b"same-origin")
}

/// A cookie's value; a name that comes twice counts as none.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(n, _)| *n == name)
        .map(|(_, value)| value);
    let one = found.next()?;
    found.next().is_none().then_some(one)
}

/// Why a body is no form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadForm {
    /// Not `application/x-www-form-urlencoded`, or not readable as one.
    Malformed,
    /// Over 16 KiB.
    TooLong,
    /// Not all of it came in time.
    TooSlow,
}

/// The fields of a posted form.
pub async fn form<B>(request: Request<B>) -> Result<BTreeMap<String, String>, BadForm>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    debug_assert_eq!(request.method(), Method::POST);
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes);
    if kind.is_none_or(|k| !k.starts_with(b"application/x-www-form-urlencoded")) {
        return Err(BadForm::Malformed);
    }
    let read = Limited::new(request.into_body(), FORM).collect();
    let bytes = match tokio::time::timeout(FORM_WITHIN, read).await {
        Err(_) => return Err(BadForm::TooSlow),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => return Err(BadForm::TooLong),
        Ok(Err(_)) => return Err(BadForm::Malformed),
        Ok(Ok(all)) => all.to_bytes(),
    };
    parse(&bytes).ok_or(BadForm::Malformed)
}

/// URL standard, application/x-www-form-urlencoded; a field that comes twice is refused, not chosen from.
fn parse(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    for pair in bytes.split(|b| *b == b'&').filter(|p| !p.is_empty()) {
        let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        let (name, value) = (
            decode(&pair[..at])?,
            decode(pair.get(at + 1..).unwrap_or_default())?,
        );
        if fields.len() == FIELDS || fields.insert(name, value).is_some() {
            return None;
        }
    }
    Some(fields)
}

fn decode(bytes: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| {
                (
                    HeaderName::from_static(n),
                    HeaderValue::from_str(v).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn only_our_own_names_with_our_port_are_us() {
        let names = [
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "[::1]".to_owned(),
        ];
        let ok = |host: &str| allowed_host(&headers(&[("host", host)]), &names, 18789).is_some();
        for good in [
            "localhost:18789",
            "LOCALHOST:18789",
            "127.0.0.1:18789",
            "[::1]:18789",
        ] {
            assert!(ok(good), "{good}");
        }
        for bad in [
            "evil.example:18789",
            "localhost",
            "localhost:1",
            "localhost.evil.example:18789",
            "localhost:18789:18789",
            "127.0.0.1.:18789",
            "",
            ":18789",
            "localhost:+18789",
            "0.0.0.0:18789",
        ] {
            assert!(!ok(bad), "{bad}");
        }
        assert!(allowed_host(&headers(&[]), &names, 18789).is_none());
        let mut twice = headers(&[("host", "localhost:18789")]);
        twice.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert!(allowed_host(&twice, &names, 18789).is_none());
    }

    #[test]
    fn only_our_own_page_may_post() {
        let ok = |pairs: &[(&'static str, &str)]| {
            same_origin(&headers(pairs), "http", "localhost:18789")
        };
        assert!(ok(&[("origin", "http://localhost:18789")]));
        assert!(ok(&[
            ("origin", "http://localhost:18789"),
            ("sec-fetch-site", "same-origin")
        ]));
        for bad in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "https://localhost:18789")],
            &[("origin", "http://localhost:9999")],
            &[("origin", "http://localhost:18789.evil.example")],
            &[("origin", "http://127.0.0.1:18789")],
            &[
                ("origin", "http://localhost:18789"),
                ("sec-fetch-site", "same-site"),
            ],
            &[
                ("origin", "http://localhost:18789"),
                ("sec-fetch-site", "none"),
            ],
        ] {
            assert!(!ok(bad), "{bad:?}");
        }
    }

    #[test]
    fn forms_and_cookies_that_say_two_things_say_nothing() {
        let parsed = parse(b"id=a%2Fb&reason=two+words&x=").unwrap();
        assert_eq!(
            (
                parsed["id"].as_str(),
                parsed["reason"].as_str(),
                parsed["x"].as_str()
            ),
            ("a/b", "two words", "")
        );
        for bad in [
            &b"id=1&id=2"[..],
            b"a=%",
            b"a=%4",
            b"a=%zz",
            b"a=%ff",
            b"%c3=1",
        ] {
            assert_eq!(parse(bad), None);
        }
        let many = "abcdefghijklmnopqrst"
            .split("")
            .collect::<Vec<_>>()
            .join("=&");
        assert_eq!(parse(many.as_bytes()), None);
        assert_eq!(
            cookie(&headers(&[("cookie", "a=1; s=x; b=2")]), "s"),
            Some("x")
        );
        assert_eq!(cookie(&headers(&[("cookie", "s=x; s=y")]), "s"), None);
    }
}
