//! `POST /rpc/METHOD`: one signed request over HTTP, through the same table of methods and the same rooms as a socket.
//!
//! Everything before the signature is cheap and bounded: no body is read for who has not signed its digest. Then, in
//! this order: size, key, MAC, time, the body's digest, nonce, and only then the method.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use portcullis_actors::clock::Clock;
use portcullis_actors::connection::{About, Methods, Params};
use portcullis_actors::signing::{Claim, SigningHandle, SigningRefusal};
use portcullis_core::codes;
use portcullis_core::protocol::frame::{ErrorBody, unsound_params};
use portcullis_core::protocol::{Encoding, Wire, method, strict};
use portcullis_core::signing::http::{HttpRefusal, Signature, check_body};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::http::{Tell, Told};

/// Where the methods are.
pub const PATH: &str = "/rpc/";
/// Longest body, bytes.
const BODY_MAX: usize = 1024 * 1024;
/// For all of a body to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// What streams, or waits for longer than an HTTP request stays.
const SOCKET_ONLY: [&str; 9] = [
    "node.invoke",
    "exec.run",
    "exec.attach",
    "exec.cancel",
    "exec.stdin",
    "exec.resize",
    "exec.signal",
    "exec.approval.request",
    "exec.approval.waitDecision",
];

type Answer = Response<Full<Bytes>>;

/// What the door needs.
#[derive(Clone)]
pub struct Rpc {
    /// Whose signature it is.
    pub signing: SigningHandle,
    /// What may be asked.
    pub methods: Arc<Methods>,
    /// The time.
    pub clock: Clock,
}

/// An error and the status that says it to HTTP.
struct Refused(StatusCode, ErrorBody);

impl Refused {
    fn new(status: StatusCode, code: &'static codes::Code, why: &str) -> Self {
        Self(status, ErrorBody::of(code, why))
    }
}

impl From<SigningRefusal> for Refused {
    fn from(refusal: SigningRefusal) -> Self {
        let code = codes::find(refusal.code()).unwrap_or(codes::INTERNAL);
        let status = match code.name {
            "OVERLOADED" => StatusCode::TOO_MANY_REQUESTS,
            name if name.starts_with("SIGNATURE_") => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, ErrorBody::of(code, refusal.to_string()))
    }
}

impl From<HttpRefusal> for Refused {
    fn from(refusal: HttpRefusal) -> Self {
        SigningRefusal::from(refusal).into()
    }
}

impl From<ErrorBody> for Refused {
    fn from(error: ErrorBody) -> Self {
        let status = match (error.stable_code(), error.code.as_str()) {
            ("UNKNOWN_METHOD", _) => StatusCode::NOT_FOUND,
            ("OVERLOADED", _) => StatusCode::TOO_MANY_REQUESTS,
            (_, "FORBIDDEN") => StatusCode::FORBIDDEN,
            (_, "INVALID_REQUEST") => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error)
    }
}

/// Answers one request.
pub async fn serve(rpc: &Rpc, request: Request<Incoming>, tls: bool, tell: &Tell) -> Answer {
    let mut is_proven = false;
    let answered = answer(rpc, request, tls, tell, &mut is_proven).await;
    // The next request on this socket is a stranger's, until it has proven itself too. Only what was told as proven: else
    // a stranger's refused requests would fill the edge's mailbox.
    if is_proven {
        tell(Told::Answered);
    }
    let (status, frame) = match answered {
        Ok((id, payload)) => (StatusCode::OK, Encoding::Json.ok(&id, &payload)),
        Err(Refused(status, error)) => (status, Encoding::Json.error("invalid", &error)),
    };
    let body = match frame {
        Ok(Wire::Text(text)) => text.into_bytes(),
        Ok(Wire::Binary(_)) | Err(_) => vec![],
    };
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    answer
}

async fn answer(
    rpc: &Rpc,
    request: Request<Incoming>,
    tls: bool,
    tell: &Tell,
    is_proven: &mut bool,
) -> Result<(String, Value), Refused> {
    let claim = claim(&request, tls)?;
    rpc.signing.check(&claim).await?;
    let body = body(request).await?;
    check_body(&claim.content_digest, &body)?;
    let name = claim.path.strip_prefix(PATH).unwrap_or_default().to_owned();
    let id = Signature::parse(&claim.input, &claim.signature)?
        .nonce
        .to_owned();
    // A clock that is a little fast is waited for.
    let ahead = Signature::parse(&claim.input, &claim.signature)?.ahead_ms(rpc.clock.now());
    if ahead > 0 {
        tokio::time::sleep(Duration::from_millis(ahead)).await;
    }
    let principal = rpc.signing.spend(claim).await?;
    // Before anything is done: no newcomer ends it in the middle.
    let (proven, told) = oneshot::channel();
    tell(Told::Proven(proven));
    if told.await.is_err() {
        let why = "it had made room for a newcomer: nothing was done, sign it anew";
        return Err(ErrorBody::of(codes::OVERLOADED, why).into());
    }
    *is_proven = true;
    method::admit(&principal, &name)?;
    if SOCKET_ONLY.contains(&&*name) {
        return Err(ErrorBody::of(
            codes::NEEDS_SOCKET,
            format!("{name} is not answered over HTTP"),
        )
        .into());
    }
    let params = if body.is_empty() {
        Ok(json!({}))
    } else {
        strict::json(&body)
    };
    let params =
        params.map_err(|why| ErrorBody::of(codes::INVALID_PARAMS, unsound_params(&name, &why)))?;
    if name == "health" {
        return Ok((id, json!({ "ok": true, "ts": rpc.clock.now() })));
    }
    // Its requests are one connection, whoever else signs: nobody answers his own question, and anybody another's.
    let connection = format!("http:{}", principal.name());
    let about = About {
        principal: &principal,
        connection: &connection,
        proven: None,
    };
    let payload = rpc.methods.call(about, &name, &Params(&params)).await?;
    Ok((id, payload))
}

/// What can be refused without looking at a key.
fn claim(request: &Request<Incoming>, tls: bool) -> Result<Claim, Refused> {
    let headers = request.headers();
    let bad = |why| Refused::new(StatusCode::BAD_REQUEST, codes::INVALID_FRAME, why);
    if request.method() != Method::POST {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Refused::new(status, codes::INVALID_FRAME, "POST it"));
    }
    // No browser has a key of ours; what one sends was made by a page.
    let is_browser = headers.contains_key(header::ORIGIN)
        || headers.contains_key(header::COOKIE)
        || headers
            .keys()
            .any(|name| name.as_str().starts_with("sec-fetch-"));
    if is_browser {
        let status = StatusCode::FORBIDDEN;
        let why = "browsers use the page at /";
        return Err(Refused::new(status, codes::INVALID_FRAME, why));
    }
    if request.uri().authority().is_some() {
        return Err(bad("ask for the path alone"));
    }
    let length = one(headers, "content-length").and_then(|text| text.parse::<usize>().ok());
    match length {
        None => {
            let status = StatusCode::LENGTH_REQUIRED;
            let why = "say the body's length";
            return Err(Refused::new(status, codes::INVALID_FRAME, why));
        }
        Some(length) if length > BODY_MAX => {
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            let why = "a body has at most 1 MiB";
            return Err(Refused::new(status, codes::INVALID_FRAME, why));
        }
        Some(_) => {}
    }
    if one(headers, "content-type") != Some("application/json") {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let why = "the body is application/json: the method's params";
        return Err(Refused::new(status, codes::INVALID_FRAME, why));
    }
    let signed = |name| {
        one(headers, name)
            .map(str::to_owned)
            .ok_or(HttpRefusal::Missing)
    };
    Ok(Claim {
        input: signed("signature-input")?,
        signature: signed("signature")?,
        content_digest: signed("content-digest")?,
        method: request.method().as_str().to_owned(),
        authority: signed("host")?,
        tls,
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
    })
}

/// A header that stands once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(first)
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Refused> {
    let read = Limited::new(request.into_body(), BODY_MAX).collect();
    match timeout(BODY_WITHIN, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => {
            let status = StatusCode::BAD_REQUEST;
            let why = "the body did not arrive whole";
            Err(Refused::new(status, codes::INVALID_FRAME, why))
        }
        Err(_) => {
            let status = StatusCode::REQUEST_TIMEOUT;
            let why = "the body did not arrive in time";
            Err(Refused::new(status, codes::INVALID_FRAME, why))
        }
    }
}
