//! The page over its own routes: real session room, real tree; the methods behind it answer from a script here, and
//! from the gateway in `tests/e2e/page.rs`.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode};
use portcullis_actors::dashboard::{Dashboard, DashboardConfig, DashboardHandle};
use portcullis_actors::supervision::{Intensity, Policy, Tree, TreeBuilder};
use portcullis_core::audit::Entry;
use portcullis_core::auth::{Door, Principal, Proof, Scope, ScopeSet};
use portcullis_core::codes;
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::{Value, json};

use super::{Calls, Page, PageConfig};

#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Vec<(String, Value)>>>, Records, Reads);

/// What was asked of the log's end.
type Reads = Arc<Mutex<Vec<Value>>>;

/// What was recorded, and whether the log takes records at all.
type Records = Arc<Mutex<(Vec<Entry>, bool)>>;

impl Calls for Scripted {
    async fn call(
        &self,
        principal: &Principal,
        method: &'static str,
        params: Value,
    ) -> Result<Value, ErrorBody> {
        assert_eq!(
            (&principal.proof, principal.door),
            (&Proof::PageSession("uid:1000".into()), Door::Page)
        );
        match method {
            "exec.approval.list" => Ok(
                json!([{"id": "plan-1", "expiresAtMs": u64::MAX, "request": {
                    "argv": ["/bin/sh", "-c", "<script>alert(1)</script>\u{202e}"], "agentId": "demo\"><b>", "target": "host",
                }}]),
            ),
            "device.pair.list" => Ok(
                json!({"pending": [{"requestId": "req-1", "deviceId": "abcd".repeat(16),
                "displayName": "<img src=x onerror=1>", "role": "operator", "scopes": ["operator.read"], "ts": 0}], "paired": []}),
            ),
            "audit.tail" => {
                self.2.lock().unwrap().push(params);
                Ok(
                    json!({"records": [{"seq": 7, "wall_ms": 0, "kind": "event", "action": "page.login",
                    "principal": "uid:0"}], "head": {"seq": 7, "hash": "ab12"}}),
                )
            }
            // Never answers: the page must come all the same.
            "status" => std::future::pending().await,
            _ => {
                self.0
                    .lock()
                    .unwrap()
                    .push((method.to_owned(), params.clone()));
                if params["id"] == "gone" {
                    return Err(ErrorBody::of(codes::APPROVAL_NOT_FOUND, "unknown <id>"));
                }
                Ok(json!({"ok": true}))
            }
        }
    }

    async fn record(&self, entry: Entry) -> Result<(), ErrorBody> {
        let mut log = self.1.lock().unwrap();
        if log.1 {
            return Err(ErrorBody::of(codes::CANNOT_RECORD, "the log is full"));
        }
        log.0.push(entry);
        Ok(())
    }
}

struct Setup {
    page: Page<Scripted>,
    handle: DashboardHandle,
    calls: Scripted,
    tree: Tree,
}

async fn setup() -> Setup {
    let mut builder = TreeBuilder::new(Intensity::default(), Arc::new(|_, _| {}));
    let handle = DashboardHandle::new(
        builder.room::<Dashboard>(Policy::new(64), DashboardConfig::default()),
    );
    let tree = builder.start().await.unwrap();
    let calls = Scripted::default();
    let config = PageConfig {
        port: 18789,
        hosts: vec![],
        dashboard: DashboardConfig::default(),
    };
    let page = Page::new(calls.clone(), handle.clone(), tree.window(), config);
    Setup {
        page,
        handle,
        calls,
        tree,
    }
}

struct Answered {
    status: StatusCode,
    response: Response<()>,
    body: String,
}

impl Answered {
    fn header(&self, name: &str) -> &str {
        self.response
            .headers()
            .get(name)
            .map_or("", |v| v.to_str().unwrap())
    }
}

const ORIGIN: (&str, &str) = ("origin", "http://localhost:18789");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

impl Setup {
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        self.send_over(false, method, path, headers, body).await
    }

    async fn send_over(
        &self,
        tls: bool,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(n, _)| *n == "host") {
            request = request.header("host", "localhost:18789");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let (parts, body) = self.page.serve(request, tls).await.unwrap().into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answered {
            status: parts.status,
            response: Response::from_parts(parts, ()),
            body,
        }
    }

    async fn code(&self, scopes: &[Scope]) -> String {
        let scopes: ScopeSet = scopes.iter().copied().collect();
        self.handle
            .mint(scopes, "uid:1000".into())
            .await
            .ok()
            .unwrap()
            .code
            .reveal()
            .to_owned()
    }

    /// Logs in; the cookie and the form token.
    async fn login(&self, scopes: &[Scope]) -> (String, String) {
        let code = self.code(scopes).await;
        let answer = self
            .send("POST", "/login", &[ORIGIN, FORM], &format!("code={code}"))
            .await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (StatusCode::SEE_OTHER, "/seen")
        );
        let cookie = answer
            .header("set-cookie")
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        let page = self.send("GET", "/", &[("cookie", &cookie)], "").await;
        let csrf = page
            .body
            .split("name=\"csrf\" value=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned();
        (cookie, csrf)
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_opens_the_page_once_and_only_from_its_own_form() {
    let setup = setup().await;
    let code = setup.code(&[Scope::Admin]).await;
    let body = format!("code={code}");
    for (headers, status) in [
        (&[FORM][..], StatusCode::FORBIDDEN),
        (
            &[FORM, ("origin", "http://evil.example")],
            StatusCode::FORBIDDEN,
        ),
        (&[FORM, ("origin", "null")], StatusCode::FORBIDDEN),
        (
            &[FORM, ORIGIN, ("sec-fetch-site", "cross-site")],
            StatusCode::FORBIDDEN,
        ),
        (
            &[FORM, ORIGIN, ("host", "evil.example:18789")],
            StatusCode::MISDIRECTED_REQUEST,
        ),
        (
            &[ORIGIN, ("content-type", "text/plain")],
            StatusCode::BAD_REQUEST,
        ),
    ] {
        assert_eq!(
            setup.send("POST", "/login", headers, &body).await.status,
            status,
            "{headers:?}"
        );
    }
    let answer = setup.send("POST", "/login", &[FORM, ORIGIN], &body).await;
    let cookie = answer.header("set-cookie");
    assert!(cookie.starts_with("portcullis-18789="), "{cookie}");
    for part in [
        "; HttpOnly",
        "; SameSite=Strict",
        "; Path=/",
        "; Max-Age=43200",
    ] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let again = setup.send("POST", "/login", &[FORM, ORIGIN], &body).await;
    assert_eq!(
        (again.status, again.header("set-cookie")),
        (StatusCode::FORBIDDEN, "")
    );
    let in_query = setup.send("GET", &format!("/login?{body}"), &[], "").await;
    assert_eq!(in_query.header("set-cookie"), "");
    setup.tree.stop().await;
}

#[tokio::test(start_paused = true)]
async fn logins_are_recorded_refused_ones_counted_and_without_a_record_there_is_no_session() {
    let setup = setup().await;
    let login = async |code: &str| {
        setup
            .send("POST", "/login", &[FORM, ORIGIN], &format!("code={code}"))
            .await
    };
    for _ in 0..500 {
        assert_eq!(login("guess").await.status, StatusCode::FORBIDDEN);
    }
    let code = setup.code(&[Scope::Admin]).await;
    assert_eq!(login(&code).await.status, StatusCode::SEE_OTHER);
    let told: Vec<_> = setup.calls.1.lock().unwrap().0.drain(..).collect();
    let told: Vec<_> = told
        .iter()
        .map(|e| {
            assert_eq!(
                (e.action.as_str(), e.door.as_deref()),
                ("dashboard.login", Some("page"))
            );
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            (text(&e.principal), text(&e.decision), e.detail.clone())
        })
        .collect();
    let detail = |name: &str, n: u64| [(name.to_owned(), n.to_string())].into_iter().collect();
    assert_eq!(
        told,
        [
            (String::new(), "refused".to_owned(), detail("count", 1)),
            (
                "uid:1000".to_owned(),
                "ok".to_owned(),
                detail("refusedBefore", 499)
            ),
        ]
    );
    setup.calls.1.lock().unwrap().1 = true;
    let code = setup.code(&[Scope::Admin]).await;
    let answer = login(&code).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("set-cookie"), "");
    assert!(answer.body.contains("the log is full"));
    setup.tree.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_wrote_is_shown_and_never_becomes_markup() {
    let setup = setup().await;
    let (cookie, _) = setup.login(&[Scope::Admin]).await;
    let page = setup.send("GET", "/", &[("cookie", &cookie)], "").await;
    assert_eq!(page.status, StatusCode::OK);
    for bad in ["<script>alert", "<img src=x", "demo\"><b>", "\u{202e}"] {
        assert!(!page.body.contains(bad), "{bad}: {}", page.body);
    }
    for shown in [
        "&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}",
        "&lt;img src=x",
        "abcd abcd",
        "ab12",
        "DEADLINE",
        "dashboard",
    ] {
        assert!(page.body.contains(shown), "{shown}: {}", page.body);
    }
    let deny = page.body.find("value=\"deny\"").unwrap();
    assert!(deny < page.body.find("value=\"allow-once\"").unwrap());
    assert!(!page.body.contains("http-equiv") && !page.body.contains("<script"));
    let csp = page.header("content-security-policy");
    assert!(
        csp.starts_with("default-src 'none';") && !csp.contains("script-src"),
        "{csp}"
    );
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(page.header(name), value);
    }
    let live = setup.send("GET", "/live", &[("cookie", &cookie)], "").await;
    assert!(live.body.contains("http-equiv=\"refresh\"") && !live.body.contains("<form"));
    setup.tree.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_decision_needs_session_origin_and_token_and_goes_through_the_one_table() {
    let setup = setup().await;
    let (cookie, csrf) = setup.login(&[Scope::Admin]).await;
    let cookie = ("cookie", cookie.as_str());
    let allow = |csrf: &str| format!("id=plan-1&decision=allow-once&csrf={csrf}");
    for (headers, body, status) in [
        (&[FORM, ORIGIN][..], allow(&csrf), StatusCode::SEE_OTHER),
        (&[FORM, ORIGIN, cookie], allow(""), StatusCode::FORBIDDEN),
        (
            &[FORM, ORIGIN, cookie],
            allow(&csrf[1..]),
            StatusCode::FORBIDDEN,
        ),
        (
            &[FORM, ORIGIN, cookie],
            "id=plan-1&decision=allow-once".to_owned(),
            StatusCode::FORBIDDEN,
        ),
        (&[FORM, cookie], allow(&csrf), StatusCode::FORBIDDEN),
        (
            &[FORM, ORIGIN, cookie],
            allow(&csrf) + "&id=plan-2",
            StatusCode::BAD_REQUEST,
        ),
        (
            &[FORM, ORIGIN, cookie],
            format!("id=plan-1&decision=allow-always&csrf={csrf}"),
            StatusCode::BAD_REQUEST,
        ),
        (
            &[FORM, ORIGIN, cookie],
            "x".repeat(20_000),
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
    ] {
        let answer = setup.send("POST", "/approvals", headers, &body).await;
        assert_eq!(answer.status, status, "{body} {}", answer.body);
        assert_ne!(answer.header("location"), "/?said=allowed");
    }
    assert!(setup.calls.0.lock().unwrap().is_empty());
    let get = setup
        .send(
            "GET",
            &format!("/approvals?{}", allow(&csrf)),
            &[cookie],
            "",
        )
        .await;
    assert_eq!(get.status, StatusCode::METHOD_NOT_ALLOWED);

    let headers = &[FORM, ORIGIN, cookie];
    let done = setup
        .send("POST", "/approvals", headers, &allow(&csrf))
        .await;
    assert_eq!(done.header("location"), "/?said=allowed");
    let deny = format!("id=plan-2&decision=deny&reason=not+now&csrf={csrf}");
    assert_eq!(
        setup
            .send("POST", "/approvals", headers, &deny)
            .await
            .header("location"),
        "/?said=denied"
    );
    let pair = format!("id=req-1&decision=approve&csrf={csrf}");
    assert_eq!(
        setup
            .send("POST", "/devices", headers, &pair)
            .await
            .header("location"),
        "/?said=approved"
    );
    assert_eq!(
        *setup.calls.0.lock().unwrap(),
        [
            (
                "exec.approval.resolve".to_owned(),
                json!({"id": "plan-1", "decision": "allow-once"})
            ),
            (
                "exec.approval.resolve".to_owned(),
                json!({"id": "plan-2", "decision": "deny", "reason": "not now"})
            ),
            (
                "device.pair.approve".to_owned(),
                json!({"requestId": "req-1"})
            ),
        ]
    );
    let gone = setup
        .send(
            "POST",
            "/approvals",
            headers,
            &format!("id=gone&decision=deny&csrf={csrf}"),
        )
        .await;
    assert_eq!(gone.status, StatusCode::CONFLICT);
    assert!(gone.body.contains("APPROVAL_NOT_FOUND") && gone.body.contains("unknown &lt;id&gt;"));
    setup.tree.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_has_no_more_than_who_asked_for_its_code_and_ends_at_logout() {
    let setup = setup().await;
    let (cookie, csrf) = setup.login(&[Scope::Read]).await;
    let headers = &[FORM, ORIGIN, ("cookie", cookie.as_str())];
    let body = format!("id=plan-1&decision=allow-once&csrf={csrf}");
    let refused = setup.send("POST", "/approvals", headers, &body).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.body.contains("MISSING_SCOPE") && !refused.body.contains("plan-1"));
    assert!(setup.calls.0.lock().unwrap().is_empty());

    let out = setup
        .send("POST", "/logout", headers, &format!("csrf={csrf}"))
        .await;
    assert_eq!(out.header("location"), "/login");
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    let after = setup.send("GET", "/", headers, "").await;
    assert_eq!(
        (after.status, after.header("location")),
        (StatusCode::SEE_OTHER, "/login")
    );

    let (cookie, _) = setup.login(&[Scope::Read]).await;
    setup.handle.end_all().await.unwrap();
    let after = setup.send("GET", "/", &[("cookie", &cookie)], "").await;
    assert_eq!(after.header("location"), "/login");
    setup.tree.stop().await;
    let down = setup.send("GET", "/", &[("cookie", &cookie)], "").await;
    assert_eq!(down.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn other_paths_and_websockets_are_left_to_others() {
    let setup = setup().await;
    let request = |path: &str, upgrade: bool| {
        let mut request = Request::builder()
            .uri(path)
            .header("host", "localhost:18789");
        if upgrade {
            request = request.header("upgrade", "websocket");
        }
        request.body(Full::new(Bytes::new())).unwrap()
    };
    assert!(
        setup
            .page
            .serve(request("/healthz", false), false)
            .await
            .is_none()
    );
    assert!(setup.page.serve(request("/", true), false).await.is_none());
    assert!(
        setup
            .page
            .serve(request("/style.css", false), false)
            .await
            .is_some()
    );
    setup.tree.stop().await;
}

#[tokio::test]
async fn cookie_and_origin_are_judged_by_how_the_request_came() {
    const SECURE: (&str, &str) = ("origin", "https://localhost:18789");
    let setup = setup().await;
    for (tls, ours, others) in [(true, SECURE, ORIGIN), (false, ORIGIN, SECURE)] {
        let body = format!("code={}", setup.code(&[Scope::Read]).await);
        let refused = &[FORM, others];
        let refused = setup.send_over(tls, "POST", "/login", refused, &body).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.header("set-cookie").is_empty());
        let answer = setup
            .send_over(tls, "POST", "/login", &[FORM, ours], &body)
            .await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
        let cookie = answer.header("set-cookie");
        assert_eq!(cookie.starts_with("__Host-portcullis-18789="), tls);
        assert_eq!(cookie.contains("; Secure"), tls, "{cookie}");
        let brought = [("cookie", cookie.split(';').next().unwrap())];
        // The other kind of connection knows it by another name.
        for (over, status) in [(tls, StatusCode::OK), (!tls, StatusCode::SEE_OTHER)] {
            let got = setup.send_over(over, "GET", "/", &brought, "").await;
            assert_eq!(got.status, status);
        }
    }
}

/// Every way to read over HTTP, by every scope alone: who lacks a part's scope has no word of it, and it is not asked for.
#[tokio::test(start_paused = true)]
async fn each_door_of_the_page_shows_a_session_what_its_scopes_are_for_and_no_more() {
    let setup = setup().await;
    let parts = [
        ("/bin/sh", Scope::Approvals),
        ("abcd abcd", Scope::Pairing),
        ("page.login", Scope::Auditor),
    ];
    let all = [
        Scope::Read,
        Scope::Approvals,
        Scope::Pairing,
        Scope::Auditor,
        Scope::Admin,
    ];
    for scope in all {
        let code = setup.code(&[scope]).await;
        let body = format!("code={code}");
        let login = setup.send("POST", "/login", &[FORM, ORIGIN], &body).await;
        let cookie = login.header("set-cookie").split(';').next().unwrap();
        let cookie = [("cookie", cookie)];
        let held: ScopeSet = [scope].into_iter().collect();
        for path in ["/live", "/", "/seen", "/seen/proof?old=1&new=2"] {
            setup.calls.0.lock().unwrap().clear();
            setup.calls.2.lock().unwrap().clear();
            let got = setup.send("GET", path, &cookie, "").await;
            let shows_parts = matches!(path, "/" | "/live");
            for (mark, needs) in &parts {
                let may = held.allows(*needs) && shows_parts;
                assert_eq!(got.body.contains(mark), may, "{path} {scope:?} {mark}");
            }
            let may = held.allows(Scope::Auditor) && shows_parts;
            let asked = setup.calls.2.lock().unwrap().len();
            assert_eq!(asked, usize::from(may), "{path} {scope:?}");
            // What is behind the proof of the log is open to whoever holds any scope, and to nobody else.
            let proof = setup.calls.0.lock().unwrap().len();
            assert_eq!(proof, usize::from(!shows_parts), "{path} {scope:?}");
        }
    }
    // Without a session, or with one that may nothing.
    for path in ["/live", "/", "/seen", "/seen/proof?old=1&new=2"] {
        let got = setup.send("GET", path, &[], "").await;
        assert_eq!(got.header("location"), "/login", "{path}");
    }
    let (cookie, _) = setup.login(&[]).await;
    setup.calls.0.lock().unwrap().clear();
    setup.calls.2.lock().unwrap().clear();
    for path in ["/live", "/", "/seen", "/seen/proof?old=1&new=2"] {
        let got = setup.send("GET", path, &[("cookie", &cookie)], "").await;
        for (mark, _) in &parts {
            assert!(!got.body.contains(mark), "{path} {mark}");
        }
    }
    assert!(setup.calls.0.lock().unwrap().is_empty() && setup.calls.2.lock().unwrap().is_empty());
    setup.tree.stop().await;
}

/// The bug: whoever asked for `/live` alone read the log, and no record said so.
#[tokio::test(start_paused = true)]
async fn the_part_that_reloads_is_a_reading_of_its_own_where_the_page_was_not_opened() {
    let setup = setup().await;
    let code = setup.code(&[Scope::Auditor]).await;
    let body = format!("code={code}");
    let login = setup.send("POST", "/login", &[FORM, ORIGIN], &body).await;
    let cookie = login.header("set-cookie").split(';').next().unwrap();
    let cookie = [("cookie", cookie)];
    let unrecorded = async |path: &str| {
        setup.send("GET", path, &cookie, "").await;
        setup.calls.2.lock().unwrap().pop().unwrap()["again"] == true
    };
    assert!(!unrecorded("/live").await);
    assert!(unrecorded("/live").await);
    // Who goes on looking is on record every quarter of an hour, and each time that he opens the page.
    tokio::time::sleep(std::time::Duration::from_mins(16)).await;
    assert!(!unrecorded("/live").await);
    assert!(!unrecorded("/").await);
    assert!(unrecorded("/live").await);
    setup.tree.stop().await;
}

/// A card that several share names those that the page showed: each is decided on, and nothing else.
#[tokio::test(start_paused = true)]
async fn a_decision_on_a_shared_card_is_for_each_that_was_shown() {
    let setup = setup().await;
    let (cookie, csrf) = setup.login(&[Scope::Admin]).await;
    let headers = &[FORM, ORIGIN, ("cookie", cookie.as_str())];
    let both = format!("id=plan-1+plan-3&decision=allow-once&csrf={csrf}");
    let done = setup.send("POST", "/approvals", headers, &both).await;
    assert_eq!(done.header("location"), "/?said=allowed");
    // One that is over already is told, and the other is decided on all the same.
    let one_gone = format!("id=gone+plan-4&decision=deny&csrf={csrf}");
    let told = setup.send("POST", "/approvals", headers, &one_gone).await;
    assert_eq!(told.status, StatusCode::CONFLICT);
    let calls = setup.calls.0.lock().unwrap().clone();
    let said: Vec<(&str, &str)> = calls
        .iter()
        .map(|(_, params)| {
            let text = |key: &str| params[key].as_str().unwrap();
            (text("id"), text("decision"))
        })
        .collect();
    assert_eq!(
        said,
        [
            ("plan-1", "allow-once"),
            ("plan-3", "allow-once"),
            ("gone", "deny"),
            ("plan-4", "deny")
        ]
    );
    setup.tree.stop().await;
}
