//! The shared token: who is refused, what is refused at start, and where it must not be seen.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, by_token};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_refused_and_closed_with_the_same_text() {
    let gateway = Gateway::start();
    let wrong = TOKEN.replace('4', "5");
    for auth in [
        json!({"token": wrong}),
        json!({"password": wrong}),
        json!({"token": ""}),
        json!({"token": &TOKEN[..TOKEN.len() - 1]}),
        json!({"token": format!("{TOKEN}x")}),
    ] {
        let (error, (code, reason)) = Client::dial(&gateway)
            .await
            .denied(&Connect::bare().auth(auth.clone()))
            .await;
        assert_eq!(error["code"], "INVALID_REQUEST");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.starts_with("unauthorized: gateway token mismatch ("),
            "{message}"
        );
        assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH", "{auth}");
        assert_eq!(error["details"]["canRetryWithDeviceToken"], false);
        assert!(
            code == 1008 && message.starts_with(&reason) && reason.len() > 20,
            "{code} {reason}"
        );
    }
    // Others' failures never lock an honest client out.
    by_token(&gateway, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_told_from_a_wrong_one() {
    let gateway = Gateway::start();
    let (error, close) = Client::dial(&gateway).await.denied(&Connect::bare()).await;
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISSING");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("unauthorized: gateway token missing")
    );
    assert_eq!(close.0, 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_taken_in_either_field() {
    let gateway = Gateway::start();
    for auth in [json!({"token": TOKEN}), json!({"password": TOKEN})] {
        let mut client = Client::dial(&gateway).await;
        let hello = client.hello(&Connect::bare().auth(auth)).await;
        assert_eq!(hello["auth"]["method"], "token");
    }
}

#[test]
fn placeholders_and_short_tokens_are_refused_at_start() {
    let mut gateway = Gateway::prepared(&[]);
    for bad in [
        "changeme-changeme-changeme",
        "short",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "your-token-your-token-your-token",
    ] {
        gateway.set("PORTCULLIS_GATEWAY_TOKEN", bad);
        let (code, stderr) = gateway.refused();
        assert_eq!(code, 4, "{stderr}");
        assert!(
            stderr.starts_with("error[TOKEN_INVALID]: ") && stderr.contains("\nnext: "),
            "{stderr}"
        );
        assert!(!stderr.contains(bad), "the token is shown: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_is_read_and_a_loose_one_is_refused_with_its_chmod() {
    let mut gateway = Gateway::prepared(&[]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    let file = gateway.home().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    gateway.set("PORTCULLIS_GATEWAY_TOKEN_FILE", file.to_str().unwrap());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let (code, stderr) = gateway.refused();
    assert_eq!(code, 4);
    assert!(
        stderr.starts_with("error[STATE_MODE]: ")
            && stderr.contains(&format!("chmod 600 {}", file.display())),
        "{stderr}"
    );

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    gateway.launch();
    by_token(&gateway, &[]).await;

    // The setting does the same.
    gateway.stop();
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN_FILE");
    gateway.set("gateway.auth.token_file", file.to_str().unwrap());
    gateway.launch();
    by_token(&gateway, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_made_is_kept_as_its_hash_only() {
    let mut gateway = Gateway::prepared(&[]);
    gateway.unset("PORTCULLIS_GATEWAY_TOKEN");
    gateway.launch();
    assert!(
        !gateway.log().contains("pc_gw_"),
        "a log is no place for it"
    );
    for file in ["state.db", "state.db-wal"] {
        let bytes = std::fs::read(gateway.state().join(file)).unwrap();
        let has = |text: &str| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        assert!(!has("pc_gw_"), "{file}");
    }
    let made = gateway.json(&["audit", "query", "--action", "auth.token.make"]);
    assert_eq!(made["records"].as_array().unwrap().len(), 1);
    // The bug: an older file with the token's hash, put back, was the token.
    gateway.stop();
    gateway.launch();
    let made = gateway.json(&["audit", "query", "--action", "auth.token.make"]);
    assert_eq!(made["records"].as_array().unwrap().len(), 1);
    let (error, _) = Client::dial(&gateway).await.denied(&Connect::token()).await;
    assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_given_by_the_environment_does_not_stay_where_others_read() {
    let gateway = Gateway::start();
    by_token(&gateway, &[]).await;
    let proc = format!("/proc/{}", gateway.pid());
    for file in ["environ", "cmdline"] {
        let bytes = std::fs::read(format!("{proc}/{file}")).unwrap();
        assert!(!bytes.is_empty());
        assert!(!String::from_utf8_lossy(&bytes).contains(TOKEN), "{file}");
    }
    // Nor in a file that it holds open, nor in any of its state.
    for fd in std::fs::read_dir(format!("{proc}/fd")).unwrap() {
        let path = fd.unwrap().path();
        if std::fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !String::from_utf8_lossy(&bytes).contains(TOKEN),
                "{}",
                path.display()
            );
        }
    }
    let found = std::process::Command::new("grep")
        .args(["-rl", TOKEN])
        .arg(gateway.state())
        .output()
        .unwrap();
    assert!(found.stdout.is_empty(), "{found:?}");
    assert!(!gateway.log().contains(TOKEN));
}
