//! The page in a real browser: log in with a code, decide by keyboard and pointer, with and without script.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fantoccini::Locator;
use fantoccini::key::Key;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portcullis::dashboard::{Calls, Page, PageConfig};
use portcullis_actors::dashboard::{Dashboard, DashboardConfig, DashboardHandle};
use portcullis_actors::supervision::{Intensity, Policy, Tree, TreeBuilder};
use portcullis_core::auth::{Principal, Scope};
use portcullis_core::protocol::frame::ErrorBody;
use serde_json::{Value, json};

use crate::support::browser::Browser;

#[derive(Clone, Default)]
struct Desk(Arc<Mutex<Vec<(String, String)>>>);

impl Desk {
    fn open(&self, id: &str) -> bool {
        !self.0.lock().unwrap().iter().any(|(of, _)| of == id)
    }
}

impl Calls for Desk {
    async fn call(
        &self,
        _: &Principal,
        method: &'static str,
        params: Value,
    ) -> Result<Value, ErrorBody> {
        let plan = json!({"id": "a1-7be2", "expiresAtMs": 4_000_000_000_000_u64, "request": {
            "agentId": "demo", "target": "host", "argv": ["/usr/bin/git", "push", "--force", "origin", "main"],
            "executable": {"kind": "host", "path": "/usr/bin/git", "sha256": "1f0c".repeat(16)}, "cwd": "/srv/app",
            "user": "nobody", "uid": 65534, "gid": 65534, "principal": "uid:0", "timeoutMs": 30_000, "planHash": "ab".repeat(32),
            "env": {"GIT_SSH_COMMAND": "ssh -i key", "HOME": "/work"},
            "reasons": ["It runs on the host, outside the sandbox.", "It sets GIT_SSH_COMMAND."],
        }});
        let pairing = json!({"requestId": "r1-91cc", "deviceId": "0f1e2d3c".repeat(8), "displayName": "राम's laptop \u{202e}", "clientId": "cli",
            "role": "operator", "scopes": ["operator.read", "operator.approvals"], "remoteIp": "192.0.2.7", "platform": "linux", "ts": 1_795_481_326_000_u64});
        let id = params["id"]
            .as_str()
            .or(params["requestId"].as_str())
            .unwrap_or_default()
            .to_owned();
        Ok(match method {
            "exec.approval.list" => {
                Value::Array(self.open("a1-7be2").then_some(plan).into_iter().collect())
            }
            "device.pair.list" => {
                json!({"pending": self.open("r1-91cc").then_some(vec![pairing]).unwrap_or_default(), "paired": []})
            }
            "audit.tail" => json!({"records": [
                {"seq": 1, "wall_ms": 1_795_481_320_000_u64, "kind": "start"},
                {"seq": 2, "wall_ms": 1_795_481_326_000_u64, "kind": "intent", "action": "exec.run", "principal": "uid:0", "object": "run-1", "decision": "ask"},
                {"seq": 3, "wall_ms": 1_795_481_329_000_u64, "kind": "outcome", "intent": 2, "result": "refused", "code": "APPROVAL_DENIED"},
            ], "head": {"seq": 3, "hash": "9f3c".repeat(16)}}),
            "status" => {
                json!({"runtimeVersion": "0.1.0", "portcullis": {"uptimeMs": 754_000, "driver": {"name": "native", "detail": "bubblewrap 0.8.0, Landlock ABI 7"}}})
            }
            _ => {
                self.0
                    .lock()
                    .unwrap()
                    .push((id, params["decision"].as_str().unwrap_or(method).to_owned()));
                json!({"ok": true})
            }
        })
    }
}

struct Site {
    url: String,
    sessions: DashboardHandle,
    desk: Desk,
    _tree: Tree,
}

async fn site() -> Site {
    let mut builder = TreeBuilder::new(Intensity::default(), Arc::new(|_, _| {}));
    let sessions = DashboardHandle::new(
        builder.room::<Dashboard>(Policy::new(64), DashboardConfig::default()),
    );
    let tree = builder.start().await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let desk = Desk::default();
    let config = PageConfig {
        port,
        tls: false,
        dashboard: DashboardConfig::default(),
    };
    let page = Arc::new(Page::new(
        desk.clone(),
        sessions.clone(),
        tree.window(),
        config,
    ));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let page = page.clone();
            let service = service_fn(move |request| {
                let page = page.clone();
                async move { Ok::<_, std::io::Error>(page.serve(request).await.unwrap()) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
        }
    });
    Site {
        url: format!("http://localhost:{port}"),
        sessions,
        desk,
        _tree: tree,
    }
}

impl Site {
    async fn code(&self) -> String {
        let scopes = [Scope::Admin].into_iter().collect();
        self.sessions
            .mint(scopes, "uid:0".into())
            .await
            .ok()
            .unwrap()
            .code
            .reveal()
            .to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_with_the_printed_link_and_decides() {
    let Some(browser) = Browser::open(false, true, 1280).await else {
        return;
    };
    let site = site().await;
    let client = &browser.client;
    client
        .goto(&format!("{}/login#{}", site.url, site.code().await))
        .await
        .unwrap();
    client
        .wait()
        .at_most(Duration::from_secs(20))
        .for_element(Locator::Css("#plans"))
        .await
        .unwrap();
    // The code is not left in the address, and the cookie is not for scripts.
    assert_eq!(
        client.current_url().await.unwrap().as_str(),
        format!("{}/", site.url)
    );
    assert_eq!(
        client
            .execute("return document.cookie", vec![])
            .await
            .unwrap(),
        json!("")
    );
    browser.keep("page-light").await;
    let text = client
        .find(Locator::Css("main"))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for part in [
        "\"push\"",
        "It runs on the host, outside the sandbox.",
        "राम's laptop \\u{202e}",
        "0f1e 2d3c",
        "dashboard",
        "native",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // By keyboard alone: from the reason field on, Deny comes before Allow.
    client
        .find(Locator::Css("#reason-a1-7be2"))
        .await
        .unwrap()
        .send_keys("not now")
        .await
        .unwrap();
    let focus = "return document.activeElement.textContent";
    client
        .active_element()
        .await
        .unwrap()
        .send_keys(&char::from(Key::Tab).to_string())
        .await
        .unwrap();
    assert_eq!(client.execute(focus, vec![]).await.unwrap(), json!("Deny"));
    client
        .active_element()
        .await
        .unwrap()
        .send_keys(&char::from(Key::Enter).to_string())
        .await
        .unwrap();
    client
        .wait()
        .at_most(Duration::from_secs(20))
        .for_element(Locator::Css("p.notice[role=status]"))
        .await
        .unwrap();
    // By pointer.
    client
        .find(Locator::Css("button[value=approve]"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    client
        .wait()
        .at_most(Duration::from_secs(20))
        .for_url(&format!("{}/?said=approved", site.url).parse().unwrap())
        .await
        .unwrap();
    let decided = site.desk.0.lock().unwrap().clone();
    assert_eq!(
        decided,
        [
            ("a1-7be2".to_owned(), "deny".to_owned()),
            ("r1-91cc".to_owned(), "device.pair.approve".to_owned())
        ]
    );
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    client.goto(&format!("{}/live", site.url)).await.unwrap();
    assert!(
        client
            .find_all(Locator::Css("form"))
            .await
            .unwrap()
            .is_empty()
    );
    client.goto(&format!("{}/", site.url)).await.unwrap();
    client
        .find(Locator::XPath("//button[text()='Log out']"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    client
        .wait()
        .at_most(Duration::from_secs(20))
        .for_element(Locator::Css("#code"))
        .await
        .unwrap();
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typed_code_does_the_same_without_script_on_a_narrow_dark_screen() {
    let Some(browser) = Browser::open(true, false, 500).await else {
        return;
    };
    let site = site().await;
    let client = &browser.client;
    // Script is off indeed: the one that reads the address does not run.
    client
        .goto(&format!("{}/login#no", site.url))
        .await
        .unwrap();
    assert_eq!(client.current_url().await.unwrap().fragment(), Some("no"));
    client.goto(&site.url).await.unwrap();
    client
        .find(Locator::Css("#code"))
        .await
        .unwrap()
        .send_keys("wrong")
        .await
        .unwrap();
    client
        .find(Locator::Css("button"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    client
        .wait()
        .at_most(Duration::from_secs(20))
        .for_element(Locator::Css("p.bad[role=alert]"))
        .await
        .unwrap();
    browser.keep("login-dark").await;
    let code = site.code().await;
    client
        .find(Locator::Css("#code"))
        .await
        .unwrap()
        .send_keys(&code)
        .await
        .unwrap();
    client
        .find(Locator::Css("button"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    client
        .wait()
        .at_most(Duration::from_secs(20))
        .for_element(Locator::Css("#plans"))
        .await
        .unwrap();
    browser.keep("page-dark").await;
    // Nothing is wider than the screen, and every button is big enough for a finger.
    let wide = "const w = document.documentElement.clientWidth; return [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, .skip') && e.getBoundingClientRect().right > w).map(e => e.outerHTML.slice(0, 120))";
    assert_eq!(client.execute(wide, vec![]).await.unwrap(), json!([]));
    let small = "return [...document.querySelectorAll('button,input:not([type=hidden])')].filter(e => e.getBoundingClientRect().height < 44).length";
    assert_eq!(client.execute(small, vec![]).await.unwrap(), json!(0));
    // Every field has a label, every table head a scope.
    // The refused code answered 403, which is all that the console may tell.
    let told = browser.complaints().await;
    assert!(told.iter().all(|line| line.contains("403")), "{told:?}");
    let bare = "return [...document.querySelectorAll('input:not([type=hidden])')].filter(e => !e.labels.length).length + document.querySelectorAll('th:not([scope])').length";
    assert_eq!(client.execute(bare, vec![]).await.unwrap(), json!(0));
    browser.close().await;
}
