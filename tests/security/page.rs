//! The page is a door too. A session with each scope alone: what it shows and each of its forms is allowed or refused as
//! the registry's row of the method says for which it stands; and no form is taken that its own page did not send.
//!
//! Codes are given on `control.sock` to administrators only, so narrower sessions are opened at the room itself, in the
//! real tree.

use portcullis_actors::dashboard::DashboardHandle;
use portcullis_core::auth::{Scope, ScopeSet};
use portcullis_core::protocol::method::METHODS;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::matrix::{SCOPES, Verdict, expected, list};
use crate::long::house::House;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, Device, admin};

/// Each form that decides: where it goes, what it says, the method that it stands for.
const FORMS: &[(&str, &str, &str)] = &[
    ("/approvals", "allow-once", "exec.approval.resolve"),
    ("/approvals", "deny", "exec.approval.resolve"),
    ("/devices", "approve", "device.pair.approve"),
    ("/devices", "reject", "device.pair.reject"),
];
/// Each part of what is shown, and the method that would tell it; the first stands before all sections.
const PARTS: &[(&str, &str)] = &[
    ("", "status"),
    ("plans", "exec.approval.list"),
    ("pairings", "device.pair.list"),
    ("devices", "device.pair.list"),
    ("tree", "status"),
    ("audit", "audit.tail"),
];

fn due(method: &str, scope: Option<&str>) -> Verdict {
    let access = METHODS.iter().find(|(name, _)| *name == method).unwrap().1;
    expected(Some(access), "operator", scope)
}

/// What a page, or a part of it, says of the method behind it.
fn told(text: &str) -> Verdict {
    match text.split("missing scope: ").nth(1) {
        Some(rest) if text.contains("MISSING_SCOPE") => {
            let scope = rest.split(['<', '"', ' ']).next().unwrap();
            Verdict::Scope(scope.to_owned())
        }
        _ => Verdict::Reached,
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn location(&self) -> &str {
        let mut lines = self.head.lines();
        lines
            .find_map(|line| line.strip_prefix("location: "))
            .unwrap_or_default()
    }
}

async fn send(port: u16, method: &str, path: &str, headers: &[String], body: &str) -> Answer {
    let mut lines = vec![
        format!("{method} {path} HTTP/1.1"),
        format!("Host: localhost:{port}"),
        "Connection: close".to_owned(),
        format!("Content-Length: {}", body.len()),
    ];
    lines.extend_from_slice(headers);
    let request = format!("{}\r\n\r\n{body}", lines.join("\r\n"));
    loop {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        // While another test of this process starts a program, that one holds the socket for a moment too.
        if !body.contains("the page is not for what the gateway runs") {
            return Answer {
                status: head.split(' ').nth(1).unwrap().parse().unwrap(),
                head: head.to_owned(),
                body: body.to_owned(),
            };
        }
    }
}

/// A browser with a session.
struct Browser {
    port: u16,
    cookie: String,
    csrf: String,
}

impl Browser {
    /// By a code, like everybody.
    async fn enter(house: &House, scope: Option<&str>) -> Self {
        Self::by(house.port(), &mint(&house.page, scope).await).await
    }

    async fn by(port: u16, code: &str) -> Self {
        let ours = [origin(port), FORM.to_owned()];
        let entered = send(port, "POST", "/login", &ours, &format!("code={code}")).await;
        assert_eq!((entered.status, entered.location()), (303, "/seen"));
        let cookie = entered.head.split("set-cookie: ").nth(1).unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let mut browser = Self {
            port,
            cookie,
            csrf: String::new(),
        };
        let page = browser.get("/").await;
        assert_eq!(page.status, 200, "{}", page.body);
        let token = page.body.split("name=\"csrf\" value=\"").nth(1).unwrap();
        token
            .split('"')
            .next()
            .unwrap()
            .clone_into(&mut browser.csrf);
        browser
    }

    async fn get(&self, path: &str) -> Answer {
        send(self.port, "GET", path, &[self.brings()], "").await
    }

    async fn post(&self, path: &str, fields: &str) -> Answer {
        let ours = [self.brings(), origin(self.port), FORM.to_owned()];
        let body = format!("csrf={}&{fields}", self.csrf);
        send(self.port, "POST", path, &ours, &body).await
    }

    fn brings(&self) -> String {
        format!("Cookie: {}", self.cookie)
    }
}

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

fn origin(port: u16) -> String {
    format!("Origin: http://localhost:{port}")
}

async fn mint(page: &DashboardHandle, scope: Option<&str>) -> String {
    let scopes: ScopeSet = scope
        .into_iter()
        .map(|s| Scope::parse(s).unwrap())
        .collect();
    let minted = page.mint(scopes, "uid:0".to_owned()).await.ok().unwrap();
    minted.code.reveal().to_owned()
}

async fn house() -> House {
    let all = list();
    House::stand(&[
        ("sandbox.driver", "native"),
        ("gateway.local.local_trust", "false"),
        ("gateway.local.local_scopes", all.as_str()),
        ("agents.demo.elevated", "ask"),
    ])
    .await
}

/// A device that waits for a person; its request's id.
async fn waiting_device(house: &House) -> String {
    let device = Device::new();
    let mut client = Client::dial_port(house.port()).await.unwrap();
    // Without scopes, which its approver would have to hold too.
    let connect = Connect::token().device(&device);
    let (error, _) = client.denied(&connect).await;
    error["details"]["requestId"].as_str().unwrap().to_owned()
}

/// A command that waits for a person; its question's id. It waits as long as its asker is there.
async fn waiting_command(asks: &mut Client, n: usize) -> String {
    let asked = json!({
        "host": "gateway", "command": format!("uname -{n}"), "commandArgv": ["uname", format!("-{n}")],
        "agentId": "demo", "twoPhase": true,
    });
    let question = asks.get("exec.approval.request", asked).await;
    question["id"].as_str().unwrap().to_owned()
}

async fn waits(by: &mut Client, path: &str, id: &str) -> bool {
    let list = match path {
        "/approvals" => by.get("exec.approval.list", json!({})).await,
        _ => by.get("device.pair.list", json!({})).await["pending"].clone(),
    };
    let key = if path == "/approvals" {
        "id"
    } else {
        "requestId"
    };
    list.as_array().unwrap().iter().any(|one| one[key] == id)
}

async fn waiting(house: &House, asks: &mut Client, path: &str, n: usize) -> String {
    if path == "/approvals" {
        waiting_command(asks, n).await
    } else {
        waiting_device(house).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_and_does_with_each_scope_what_the_rows_of_its_methods_say() {
    let house = house().await;
    let (mut asks, mut looks) = (house.admin().await, house.admin().await);
    let (mut cells, mut n) = (0, 0);
    for scope in SCOPES.iter().map(|(name, _)| Some(*name)).chain([None]) {
        let browser = Browser::enter(&house, scope).await;
        for path in ["/", "/live"] {
            let page = browser.get(path).await;
            for (part, method) in PARTS {
                let start = format!("<section aria-labelledby=\"{part}\"");
                let shown = if part.is_empty() {
                    page.body.split("<section").next().unwrap()
                } else {
                    let section = page.body.split(&start).nth(1).unwrap();
                    section.split("</section>").next().unwrap()
                };
                assert_eq!(told(shown), due(method, scope), "{path} {part} {scope:?}");
                cells += 1;
            }
            // The page that reloads itself decides nothing.
            assert_eq!(page.body.contains("<form"), path == "/", "{path}");
        }
        for (path, decision, method) in FORMS {
            n += 1;
            let id = waiting(&house, &mut asks, path, n).await;
            let answer = browser
                .post(path, &format!("id={id}&decision={decision}"))
                .await;
            let done = answer.status == 303 && answer.location().starts_with("/?said=");
            let due = due(method, scope);
            assert_eq!(done, due == Verdict::Reached, "{decision} {scope:?}");
            // Refused, it is on the page's top; and what waited waits.
            let top = answer.body.split("<dl>").next().unwrap();
            assert_eq!(told(top), due, "{path} {decision} {scope:?}");
            assert_eq!(
                waits(&mut looks, path, &id).await,
                !done,
                "{decision} {scope:?}"
            );
            if !done {
                let ends = match *path {
                    "/approvals" => (
                        "exec.approval.resolve",
                        json!({"id": id, "decision": "deny"}),
                    ),
                    _ => ("device.pair.reject", json!({"requestId": id})),
                };
                looks.get(ends.0, ends.1).await;
            }
            cells += 1;
        }
        // Its own end is everybody's.
        let out = browser.post("/logout", "").await;
        assert_eq!(out.location(), "/login", "{scope:?}");
        assert_eq!(browser.get("/").await.location(), "/login", "{scope:?}");
        let late = browser.post("/approvals", "id=x&decision=deny").await;
        assert_eq!(late.location(), "/login", "{scope:?}");
        cells += 2;
    }
    assert_eq!(
        cells,
        (SCOPES.len() + 1) * (2 * PARTS.len() + FORMS.len() + 2)
    );
    println!("FIGURE: conformance matrix, the page: {cells} cells");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_of_the_page_is_taken_from_elsewhere_or_with_another_sessions_token() {
    let house = house().await;
    let port = house.port();
    let (mut asks, mut looks) = (house.admin().await, house.admin().await);
    let (mine, other) = (
        Browser::enter(&house, Some("operator.admin")).await,
        Browser::enter(&house, Some("operator.admin")).await,
    );
    let command = waiting_command(&mut asks, 0).await;
    let device = waiting_device(&house).await;
    // Every form that the page has is in the tables.
    let page = mine.get("/").await.body;
    let mut seen = vec![];
    for form in page.split("<form").skip(1) {
        let form = form.split("</form>").next().unwrap();
        let action = form.split("action=\"").nth(1).unwrap();
        let action = action.split('"').next().unwrap();
        for button in form.split("name=\"decision\" value=\"").skip(1) {
            seen.push((action, button.split('"').next().unwrap()));
        }
        assert!(form.contains(&mine.csrf), "{form}");
        assert!(action == "/logout" || form.contains("decision"), "{form}");
    }
    seen.sort_unstable();
    let mut known: Vec<_> = FORMS.iter().map(|(path, word, _)| (*path, *word)).collect();
    known.sort_unstable();
    assert_eq!(seen, known);

    let ours = || vec![mine.brings(), origin(port), FORM.to_owned()];
    let without = |header: &str| {
        let mut all = ours();
        all.retain(|one| !one.starts_with(header));
        all
    };
    let with = |header: &str, value: &str| {
        let mut all = without(header);
        all.push(format!("{header}: {value}"));
        all
    };
    let also = |line: &str| [ours(), vec![line.to_owned()]].concat();
    let token = |csrf: &str| format!("&csrf={csrf}");
    let right = || token(&mine.csrf);
    let evil = format!("http://localhost:{}", port ^ 1);
    let cells: Vec<(&str, Vec<String>, String, u16)> = vec![
        ("no token", ours(), String::new(), 403),
        ("an empty token", ours(), token(""), 403),
        ("a short token", ours(), token(&mine.csrf[1..]), 403),
        ("another session's token", ours(), token(&other.csrf), 403),
        ("two tokens", ours(), right() + &token(&other.csrf), 400),
        (
            "another session's cookie",
            with("Cookie", &other.cookie),
            right(),
            403,
        ),
        ("no cookie", without("Cookie"), right(), 303),
        (
            "a cookie of nobody",
            with("Cookie", &format!("{}0", mine.cookie)),
            right(),
            303,
        ),
        ("two cookies", also(&other.brings()), right(), 303),
        ("no origin", without("Origin"), right(), 403),
        (
            "no origin that is one",
            with("Origin", "null"),
            right(),
            403,
        ),
        ("another port", with("Origin", &evil), right(), 403),
        (
            "another name",
            with("Origin", &format!("http://127.0.0.1:{port}")),
            right(),
            403,
        ),
        (
            "another scheme",
            with("Origin", &format!("https://localhost:{port}")),
            right(),
            403,
        ),
        ("two origins", also(&origin(port)), right(), 403),
        (
            "from another site",
            also("Sec-Fetch-Site: cross-site"),
            right(),
            403,
        ),
        (
            "from a sibling",
            also("Sec-Fetch-Site: same-site"),
            right(),
            403,
        ),
        ("no form", with("Content-Type", "text/plain"), right(), 400),
    ];
    let mut count = 0;
    for (what, headers, csrf, status) in &cells {
        let forms = FORMS.iter().map(|(path, word, _)| {
            let id = if *path == "/approvals" {
                &command
            } else {
                &device
            };
            (*path, format!("id={id}&decision={word}"))
        });
        for (path, fields) in forms.chain([("/logout", "x=".to_owned())]) {
            let body = format!("{fields}{csrf}");
            let answer = send(port, "POST", path, headers, &body).await;
            assert_eq!(answer.status, *status, "{what} {path}: {}", answer.body);
            assert!(
                *status != 303 || answer.location() == "/login",
                "{what} {path}"
            );
            count += 1;
        }
    }
    // What a link could do.
    for (path, word, _) in FORMS {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let path = format!("{path}?id={command}&decision={word}&csrf={}", mine.csrf);
            let answer = send(port, method, &path, &ours(), "").await;
            assert_eq!(answer.status, 405, "{method} {path}");
            count += 1;
        }
    }
    // Nothing was decided, and both sessions live.
    assert!(waits(&mut looks, "/approvals", &command).await);
    assert!(waits(&mut looks, "/devices", &device).await);
    assert_eq!(
        (mine.get("/").await.status, other.get("/").await.status),
        (200, 200)
    );
    let denied = mine
        .post("/approvals", &format!("id={command}&decision=deny"))
        .await;
    assert_eq!(denied.location(), "/?said=denied");
    println!("FIGURE: conformance matrix, forged forms of the page: {count} cells");
    house.end().await;
}

/// The registry tells what a code needs, and the door adds that it is the kernel's.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_for_the_page_is_given_to_an_administrator_on_the_control_socket_alone() {
    let house = house().await;
    for scope in SCOPES.iter().map(|(name, _)| Some(*name)).chain([None]) {
        let scopes: Vec<&str> = scope.into_iter().collect();
        let mut client = Client::control(&house.state()).await;
        client.hello(&Connect::bare().scopes(&scopes)).await;
        let answer: Value = client.call("dashboard.code", json!({})).await;
        let is_given = due("dashboard.code", scope) == Verdict::Reached;
        assert_eq!(answer["ok"], is_given, "{scope:?} {answer}");
    }
    house.end().await;
}

/// The bug: whoever had opened a page kept it when the shared token was changed because it had leaked.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_shared_token_signs_out_every_page_and_voids_every_code() {
    let mut gateway = Gateway::prepared(&[]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    gateway.launch();
    let mut by = admin(&gateway).await;
    let mut code = async || {
        let made = by.get("dashboard.code", json!({})).await;
        made["code"].as_str().unwrap().to_owned()
    };
    let (used, unused) = (code().await, code().await);
    let browser = Browser::by(gateway.port(), &used).await;
    assert_eq!(browser.get("/").await.status, 200);
    by.get("auth.token.rotate", json!({})).await;
    assert_eq!(browser.get("/").await.location(), "/login");
    let ours = [origin(gateway.port()), FORM.to_owned()];
    let body = format!("code={unused}");
    let late = send(gateway.port(), "POST", "/login", &ours, &body).await;
    assert_ne!((late.status, late.location()), (303, "/seen"));
    // A new code opens one again.
    let made = by.get("dashboard.code", json!({})).await;
    let code = made["code"].as_str().unwrap();
    assert_eq!(
        Browser::by(gateway.port(), code)
            .await
            .get("/")
            .await
            .status,
        200
    );
}
