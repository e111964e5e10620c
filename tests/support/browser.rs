//! A real browser for a test: chromedriver on a free port, Chromium with a profile of its own, both ended with it.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;

/// See the module.
pub struct Browser {
    /// The session.
    pub client: Client,
    driver: Child,
    port: u16,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None`, said loudly, where this machine has no chromedriver or Chromium; fails in CI.
    pub async fn open(dark: bool, script: bool, width: u32) -> Option<Self> {
        let (Some(driver), Some(chromium)) = (find("chromedriver"), find("chromium")) else {
            not_run("the page in a browser: apt-get install chromium chromium-driver");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let driver = Command::new(driver)
            .arg(format!("--port={port}"))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut args = vec![
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            format!("--window-size={width},2600"),
            format!(
                "--user-data-dir={}",
                profile.path().join("chromium").display()
            ),
        ];
        if dark {
            args.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        // 1 allows, 2 blocks, as the person's own setting would.
        let javascript = if script { 1 } else { 2 };
        let prefs = json!({ "profile.managed_default_content_settings.javascript": javascript });
        let capabilities = json!({
            "goog:chromeOptions": { "binary": chromium, "args": args, "prefs": prefs },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let serde_json::Value::Object(capabilities) = capabilities else {
            unreachable!()
        };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities);
        let until = Instant::now() + Duration::from_mins(1);
        let client = loop {
            match builder.connect(&format!("http://127.0.0.1:{port}")).await {
                Ok(client) => break client,
                Err(error) => assert!(
                    Instant::now() < until,
                    "chromedriver does not answer: {error}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        Some(Self {
            client,
            driver,
            port,
            _profile: profile,
        })
    }

    /// Keeps what it shows now under `target/screenshots/`.
    pub async fn keep(&self, name: &str) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            folder.join(format!("{name}.png")),
            self.client.screenshot().await.unwrap(),
        )
        .unwrap();
    }

    /// What the browser's console tells: errors, and violations of the content policy.
    pub async fn complaints(&self) -> Vec<String> {
        let session = self.client.session_id().await.unwrap().unwrap();
        let port = self.port;
        let answer = tokio::task::spawn_blocking(move || {
            let body = r#"{"type":"browser"}"#;
            let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let head = format!(
                "POST /session/{session}/se/log HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            socket.write_all(head.as_bytes()).unwrap();
            // chromedriver keeps the connection open: its length says where the answer ends.
            let mut answer = Vec::new();
            let mut piece = [0; 4096];
            loop {
                let len = socket.read(&mut piece).unwrap();
                answer.extend_from_slice(&piece[..len]);
                let text = String::from_utf8_lossy(&answer).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|l| {
                        l.to_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse::<usize>().unwrap())
                    });
                    if body.len() >= length.unwrap() {
                        return body.to_owned();
                    }
                }
                assert!(len > 0, "chromedriver closed: {text}");
            }
        })
        .await
        .unwrap();
        let body: serde_json::Value = serde_json::from_str(&answer).unwrap();
        body["value"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Ends both.
    pub async fn close(self) {
        let _ = self.client.clone().close().await;
    }
}

impl Drop for Browser {
    /// With the whole group: a test that fails leaves no Chromium behind.
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.driver.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.driver.wait();
    }
}

fn find(name: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Says that this machine cannot run a test.
pub fn not_run(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "NOT RUN: {what}");
    println!("NOT RUN: {what}");
    if let Some(file) = std::env::var_os("PORTCULLIS_NOT_RUN_FILE") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .unwrap();
        writeln!(file, "{what}").unwrap();
    }
}
