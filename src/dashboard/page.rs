//! The routes.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use portcullis_actors::dashboard::{DashboardConfig, DashboardError, DashboardHandle, Secret};
use portcullis_actors::supervision::TreeWindow;
use portcullis_core::audit::{Entry, SignedCheckpoint};
use portcullis_core::auth::{Door, Principal, Proof, Role};
use portcullis_core::codes;
use portcullis_core::dashboard::Session;
use portcullis_core::protocol::frame::ErrorBody;
use portcullis_core::protocol::method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::http::{self, BadForm, CSP, CSP_LOGIN, CSP_SEEN, HTML, answer, redirect};
use super::login;
use super::render::{self, Content, Notice};

/// For one read of the page: what takes longer is shown as not answering, and the rest of the page comes.
const READ_WITHIN: Duration = Duration::from_secs(2);
/// For a decision.
const DECIDE_WITHIN: Duration = Duration::from_secs(15);
/// Questions of one card that a form decides on: as many as wait in all.
const MOST_SHOWN: usize = 256;
/// Audit records shown.
const RECORDS: u32 = 20;

/// The page's way to the methods: the same function that answers a request on a socket.
pub trait Calls: Send + Sync + 'static {
    /// Answers one request of this principal.
    fn call(
        &self,
        principal: &Principal,
        method: &'static str,
        params: Value,
    ) -> impl Future<Output = Result<Value, ErrorBody>> + Send;

    /// Makes one record durable.
    fn record(&self, entry: Entry) -> impl Future<Output = Result<(), ErrorBody>> + Send;
}

/// How the page is reached.
#[derive(Debug, Clone)]
pub struct PageConfig {
    /// The port that browsers use.
    pub port: u16,
    /// `[gateway] hosts`.
    pub hosts: Vec<String>,
    /// `[dashboard]`.
    pub dashboard: DashboardConfig,
}

/// The page.
pub struct Page<C> {
    calls: C,
    sessions: DashboardHandle,
    tree: TreeWindow,
    config: PageConfig,
    names: Vec<String>,
}

/// Somebody with a live session.
struct Visitor {
    key: Secret,
    session: Session,
}

impl Visitor {
    fn principal(&self) -> Principal {
        Principal {
            proof: Proof::PageSession(self.session.by.clone()),
            door: Door::Page,
            role: Role::Operator,
            scopes: self.session.scopes.clone(),
            agent: None,
            generation: 0,
            secret: None,
        }
    }
}

type Answer = Response<Full<Bytes>>;

impl<C: Calls> Page<C> {
    /// Nothing is opened or read yet.
    pub fn new(calls: C, sessions: DashboardHandle, tree: TreeWindow, config: PageConfig) -> Self {
        let names = ["localhost", "127.0.0.1", "[::1]"]
            .into_iter()
            .map(str::to_owned)
            .chain(config.hosts.iter().cloned())
            .collect();
        Self {
            calls,
            sessions,
            tree,
            config,
            names,
        }
    }

    /// Answers the page's own paths; `None` for every other path, for a WebSocket, and when the page is off. `tls` is
    /// this connection's: one listener speaks both, so cookie and origin are judged by how the request came.
    pub async fn serve<B>(&self, request: Request<B>, tls: bool) -> Option<Answer>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path();
        let ours = matches!(
            path,
            "/" | "/live"
                | "/login"
                | "/login.js"
                | "/seen"
                | "/seen.js"
                | "/seen/proof"
                | "/style.css"
                | "/icon.svg"
                | "/favicon.ico"
                | "/logout"
                | "/approvals"
                | "/devices"
        );
        if !ours
            || !self.config.dashboard.enabled
            || request.headers().contains_key(header::UPGRADE)
        {
            return None;
        }
        Some(self.route(request, tls).await)
    }

    async fn route<B>(&self, request: Request<B>, tls: bool) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let headers = request.headers();
        let Some(host) = http::allowed_host(headers, &self.names, self.config.port) else {
            return stop(
                StatusCode::MISDIRECTED_REQUEST,
                "This name is not one of this gateway's. Open it as localhost.",
            );
        };
        let path = request.uri().path().to_owned();
        match *request.method() {
            Method::GET | Method::HEAD => self.get(&path, &request, tls).await,
            Method::POST => {
                let scheme = if tls { "https" } else { "http" };
                if !http::same_origin(headers, scheme, host) {
                    return stop(
                        StatusCode::FORBIDDEN,
                        "This form was not sent by this page.",
                    );
                }
                self.post(&path, request, tls).await
            }
            _ => method_not_allowed("GET, HEAD, POST"),
        }
    }

    async fn get<B>(&self, path: &str, request: &Request<B>, tls: bool) -> Answer {
        match path {
            "/style.css" => answer(
                StatusCode::OK,
                "text/css; charset=utf-8",
                render::STYLE,
                CSP,
            ),
            "/login.js" => answer(
                StatusCode::OK,
                "text/javascript; charset=utf-8",
                render::LOGIN_JS,
                CSP,
            ),
            "/seen.js" => answer(
                StatusCode::OK,
                "text/javascript; charset=utf-8",
                render::SEEN_JS,
                CSP,
            ),
            "/seen" | "/seen/proof" => match self.visitor(request, tls, true).await {
                Ok(visitor) if path == "/seen" => self.seen(&visitor).await,
                Ok(visitor) => self.proof(&visitor, request.uri().query()).await,
                Err(response) => response,
            },
            "/icon.svg" | "/favicon.ico" => {
                answer(StatusCode::OK, "image/svg+xml", render::ICON, CSP)
            }
            "/login" => login_page(StatusCode::OK, None),
            "/" => match self.visitor(request, tls, true).await {
                Ok(visitor) => {
                    self.page(&visitor, StatusCode::OK, said(request), false)
                        .await
                }
                Err(response) => response,
            },
            "/live" => match self.visitor(request, tls, false).await {
                Ok(visitor) => self.page(&visitor, StatusCode::OK, None, true).await,
                Err(response) => response,
            },
            _ => method_not_allowed("POST"),
        }
    }

    async fn post<B>(&self, path: &str, request: Request<B>, tls: bool) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if path == "/login" {
            return match form(request).await {
                Ok(fields) => self.login(&fields, tls).await,
                Err(response) => response,
            };
        }
        if !matches!(path, "/logout" | "/approvals" | "/devices") {
            return method_not_allowed("GET, HEAD");
        }
        // The session before the body: nobody unknown is read from.
        let visitor = match self.visitor(&request, tls, true).await {
            Ok(visitor) => visitor,
            Err(response) => return response,
        };
        let fields = match form(request).await {
            Ok(fields) => fields,
            Err(response) => return response,
        };
        if !fields
            .get("csrf")
            .is_some_and(|brought| login::csrf_fits(&visitor.key, brought))
        {
            return stop(
                StatusCode::FORBIDDEN,
                "This form is not of your session. Open the page again.",
            );
        }
        match path {
            "/logout" => self.logout(visitor, tls).await,
            _ => self.decide(path, &visitor, &fields).await,
        }
    }

    async fn login(&self, fields: &BTreeMap<String, String>, tls: bool) -> Answer {
        let code = fields.get("code").map_or("", String::as_str).trim();
        match self.sessions.redeem(Secret::brought(code)).await {
            Ok((key, session)) => {
                // Recorded before the cookie goes out: a session that is not on record is nobody's.
                let recorded = self.record_login(&session.by).await;
                if let Err(error) = recorded {
                    // Down, it has forgotten the session already.
                    let _ = self.sessions.end(key).await;
                    return stop(StatusCode::SERVICE_UNAVAILABLE, &error.message);
                }
                tracing::info!(target: "portcullis", by = session.by, "page session opened");
                let seconds = self.config.dashboard.session_hours.saturating_mul(3600);
                with_cookie(
                    redirect("/seen"),
                    &login::set_cookie(&self.cookie(tls), &key, tls, seconds),
                )
            }
            Err(error @ DashboardError::Refused(_)) => {
                self.record_refused().await;
                login_page(StatusCode::FORBIDDEN, Some(&error.to_string()))
            }
            Err(DashboardError::Room(code)) => stop(StatusCode::SERVICE_UNAVAILABLE, code.next),
        }
    }

    async fn record_login(&self, by: &str) -> Result<(), ErrorBody> {
        let mut entry = login_entry("ok");
        entry.principal = Some(by.to_owned());
        if let Ok(Some(before)) = self.sessions.refused_logins(true).await {
            entry
                .detail
                .insert("refusedBefore".to_owned(), before.to_string());
        }
        self.calls.record(entry).await
    }

    /// Guesses are told once a minute, with their count: whoever guesses does not write the log at will.
    async fn record_refused(&self) {
        let Ok(Some(count)) = self.sessions.refused_logins(false).await else {
            return;
        };
        tracing::warn!(target: "portcullis", count, "page login refused");
        let mut entry = login_entry("refused");
        entry.detail.insert("count".to_owned(), count.to_string());
        if let Err(error) = self.calls.record(entry).await {
            tracing::warn!(target: "portcullis", code = error.stable_code(), "refused logins could not be recorded");
        }
    }

    async fn logout(&self, visitor: Visitor, tls: bool) -> Answer {
        let gone = with_cookie(
            redirect("/login"),
            &login::clear_cookie(&self.cookie(tls), tls),
        );
        match self.sessions.end(visitor.key).await {
            Ok(()) => gone,
            Err(_) => stop(
                StatusCode::SERVICE_UNAVAILABLE,
                "The session could not be ended now. Try again.",
            ),
        }
    }

    async fn decide(
        &self,
        path: &str,
        visitor: &Visitor,
        fields: &BTreeMap<String, String>,
    ) -> Answer {
        let get = |name: &str| fields.get(name).map_or("", String::as_str);
        // A card that several questions share names each that it shows.
        let shown: Vec<&str> = match path {
            "/approvals" => get("id").split(' ').collect(),
            _ => vec![get("id")],
        };
        if shown.len() > MOST_SHOWN {
            return stop(StatusCode::BAD_REQUEST, "This form names too much.");
        }
        let mut answer = None;
        for id in shown {
            let said = Box::pin(self.decide_one(path, visitor, &get, id)).await;
            // One that was answered or withdrawn meanwhile is told, and is no reason against the others.
            if answer
                .as_ref()
                .is_none_or(|answer: &Answer| answer.status().is_redirection())
            {
                answer = Some(said);
            }
        }
        answer.unwrap_or_else(|| stop(StatusCode::BAD_REQUEST, "This form names nothing."))
    }

    async fn decide_one<'a>(
        &self,
        path: &str,
        visitor: &Visitor,
        get: &impl Fn(&str) -> &'a str,
        id: &str,
    ) -> Answer {
        let decision = get("decision");
        let (method, params, said) = match (path, decision) {
            ("/approvals", "deny") => {
                let mut params = json!({ "id": id, "decision": "deny" });
                if !get("reason").trim().is_empty() {
                    params["reason"] = get("reason").trim().into();
                }
                ("exec.approval.resolve", params, "/?said=denied")
            }
            ("/approvals", "allow-once") => (
                "exec.approval.resolve",
                json!({ "id": id, "decision": decision }),
                "/?said=allowed",
            ),
            ("/devices", "reject") => (
                "device.pair.reject",
                json!({ "requestId": id }),
                "/?said=rejected",
            ),
            ("/devices", "approve") => (
                "device.pair.approve",
                json!({ "requestId": id }),
                "/?said=approved",
            ),
            _ => {
                return stop(
                    StatusCode::BAD_REQUEST,
                    "This form says nothing that can be done.",
                );
            }
        };
        match self
            .call(&visitor.principal(), method, params, DECIDE_WITHIN)
            .await
        {
            Ok(_) => redirect(said),
            // The page again, with the reason on top: what waits may have changed.
            Err(error) => {
                self.page(
                    visitor,
                    StatusCode::CONFLICT,
                    Some(Notice::Refused(error)),
                    false,
                )
                .await
            }
        }
    }

    async fn page(
        &self,
        visitor: &Visitor,
        status: StatusCode,
        notice: Option<Notice>,
        live: bool,
    ) -> Answer {
        let principal = visitor.principal();
        let read = |method, params| self.call(&principal, method, params, READ_WITHIN);
        // Whoever asks for the part that reloads, and never opened the page, opens the log.
        let again = live && visitor.session.reads;
        let (approvals, devices, records, state) = tokio::join!(
            read("exec.approval.list", json!({})),
            read("device.pair.list", json!({})),
            read("audit.tail", json!({ "limit": RECORDS, "again": again })),
            read("status", json!({})),
        );
        if !again && records.is_ok() {
            // Not noted, the next view is on record once more.
            let _ = self.sessions.read(visitor.key.clone()).await;
        }
        // Looked at here, and told by `status`: who may not ask that is not shown it either.
        let tree = method::admit(&principal, "status").map(|()| self.tree.look());
        let content = Content {
            tree,
            approvals,
            devices,
            records,
            status: state,
            by: &visitor.session.by,
            csrf: login::csrf(&visitor.key),
            notice,
            live,
        };
        answer(status, HTML, render::page(&content), CSP)
    }

    /// The newest checkpoint, for a browser to compare. A log that cannot be signed now keeps nobody from the page.
    async fn seen(&self, visitor: &Visitor) -> Answer {
        let principal = visitor.principal();
        let told = self.call(&principal, "audit.checkpoint", json!({}), READ_WITHIN);
        let note = told.await.ok();
        let note = note.and_then(|told| SignedCheckpoint::parse(told["note"].as_str()?).ok());
        let Some(SignedCheckpoint { checkpoint, .. }) = note else {
            return redirect("/");
        };
        let root = checkpoint.root.to_string();
        let page = render::seen(&checkpoint.origin, checkpoint.size, &root);
        answer(StatusCode::OK, HTML, page, CSP_SEEN)
    }

    /// That the log of `new` records goes on from that of `old`: `old=N&new=N` and nothing else.
    async fn proof(&self, visitor: &Visitor, query: Option<&str>) -> Answer {
        let sizes = query.and_then(|query| {
            let (old, new) = query.strip_prefix("old=")?.split_once("&new=")?;
            Some((old.parse::<u64>().ok()?, new.parse::<u64>().ok()?))
        });
        let Some((old, new)) = sizes else {
            return stop(StatusCode::BAD_REQUEST, "This asks for no proof.");
        };
        let (principal, params) = (visitor.principal(), json!({ "old": old, "new": new }));
        let proof = self.call(&principal, "audit.consistency", params, DECIDE_WITHIN);
        match proof.await {
            Ok(proof) => {
                let kind = "application/json";
                answer(StatusCode::OK, kind, proof.to_string(), CSP)
            }
            Err(error) => stop(StatusCode::CONFLICT, &error.message),
        }
    }

    /// One request, by the one table of who may what.
    async fn call(
        &self,
        principal: &Principal,
        method: &'static str,
        params: Value,
        within: Duration,
    ) -> Result<Value, ErrorBody> {
        method::admit(principal, method)?;
        timeout(within, self.calls.call(principal, method, params))
            .await
            .unwrap_or_else(|_| Err(ErrorBody::of(codes::DEADLINE, "no answer in time")))
    }

    fn cookie(&self, tls: bool) -> String {
        login::cookie_name(self.config.port, tls)
    }

    async fn visitor<B>(
        &self,
        request: &Request<B>,
        tls: bool,
        touch: bool,
    ) -> Result<Visitor, Answer> {
        let key = http::cookie(request.headers(), &self.cookie(tls)).map(Secret::brought);
        let Some(key) = key else {
            return Err(redirect("/login"));
        };
        match self.sessions.check(key.clone(), touch).await {
            Ok(session) => Ok(Visitor { key, session }),
            Err(DashboardError::Refused(_)) => Err(redirect("/login")),
            Err(DashboardError::Room(code)) => {
                Err(stop(StatusCode::SERVICE_UNAVAILABLE, code.next))
            }
        }
    }
}

/// What the last form did: a word of a closed set, so that nobody can put words into the page.
fn said<B>(request: &Request<B>) -> Option<Notice> {
    let word = request.uri().query()?.strip_prefix("said=")?;
    ["denied", "allowed", "rejected", "approved"]
        .into_iter()
        .find(|w| *w == word)
        .map(Notice::Done)
}

async fn form<B>(request: Request<B>) -> Result<BTreeMap<String, String>, Answer>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    http::form(request).await.map_err(|bad| match bad {
        BadForm::Malformed => stop(StatusCode::BAD_REQUEST, "This is not a form of this page."),
        BadForm::TooLong => stop(StatusCode::PAYLOAD_TOO_LARGE, "This form is too long."),
        BadForm::TooSlow => stop(
            StatusCode::REQUEST_TIMEOUT,
            "The form did not come in time.",
        ),
    })
}

fn login_entry(decision: &str) -> Entry {
    Entry {
        action: "dashboard.login".to_owned(),
        door: Some(Door::Page.as_str().to_owned()),
        decision: Some(decision.to_owned()),
        ..Entry::default()
    }
}

fn login_page(status: StatusCode, refused: Option<&str>) -> Answer {
    answer(status, HTML, render::login(refused), CSP_LOGIN)
}

fn stop(status: StatusCode, text: &str) -> Answer {
    answer(status, HTML, render::stop(status, text), CSP)
}

fn method_not_allowed(allow: &'static str) -> Answer {
    let mut response = stop(StatusCode::METHOD_NOT_ALLOWED, "This path is not for that.");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

fn with_cookie(mut response: Answer, cookie: &str) -> Answer {
    // Hex and base64url of ours: always a legal header.
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}
