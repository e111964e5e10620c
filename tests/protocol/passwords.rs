//! Passwords: kept under bcrypt, never cut, the same for every name, and guessed at ten times.

use std::process::Stdio;
use std::time::{Duration, Instant};

use portcullis_core::token::{Token, TokenKind};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::gateway::{Gateway, TOKEN};
use crate::support::ws::{Client, Connect, Device};

const PASSWORD: &str = "a password of several words";

fn gateway(mode: &str) -> Gateway {
    Gateway::with(&[
        ("gateway.auth.mode", mode),
        ("gateway.auth.bcrypt_cost", "10"),
    ])
}

fn by(password: &str) -> Connect<'static> {
    Connect::bare().auth(json!({ "password": password }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_opens_in_either_field_and_a_new_one_ends_its_sessions() {
    let mut gateway = gateway("password");
    assert_eq!(
        gateway.feed(&["password", "set"], format!("{PASSWORD}\n").as_bytes()),
        0
    );
    let mut session = Client::dial(&gateway).await;
    let hello = session.hello(&by(PASSWORD)).await;
    assert_eq!(hello["auth"]["method"], "password");
    let as_token = Connect::bare().auth(json!({ "token": PASSWORD }));
    Client::dial(&gateway).await.hello(&as_token).await;
    let device = Device::new();
    let mut with_device = Client::dial(&gateway).await;
    let hello = with_device.hello(&by(PASSWORD).device(&device)).await;
    let device_token = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    // The shared token is none in this mode, and what is wrong is called a password.
    let (error, _) = Client::dial(&gateway).await.denied(&Connect::token()).await;
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISMATCH");
    let (error, _) = Client::dial(&gateway).await.denied(&Connect::bare()).await;
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISSING");

    assert_eq!(
        gateway.feed(&["password", "set"], b"another one of many words"),
        0
    );
    let end = (4001, "gateway auth changed".to_owned());
    assert_eq!(session.closed().await, end);
    assert_eq!(with_device.closed().await, end);
    // Its device is still paired.
    let own = Connect::bare()
        .auth(json!({ "deviceToken": device_token }))
        .device(&device);
    Client::dial(&gateway).await.hello(&own).await;
    gateway.crash_and_start();
    let (error, _) = Client::dial(&gateway).await.denied(&by(PASSWORD)).await;
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISMATCH");
    Client::dial(&gateway)
        .await
        .hello(&by("another one of many words"))
        .await;
    let mut kept = std::fs::read(gateway.state().join("state.db")).unwrap();
    kept.extend(std::fs::read(gateway.state().join("state.db-wal")).unwrap_or_default());
    let kept = String::from_utf8_lossy(&kept);
    assert!(kept.contains("pc1:$2b$10$") && !kept.contains("many words"));
    assert_eq!(
        gateway.json(&["password", "list"])["passwords"][0]["name"],
        "default"
    );
    gateway.json(&["password", "remove"]);
    let gone = by("another one of many words");
    let (error, _) = Client::dial(&gateway).await.denied(&gone).await;
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISMATCH");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_cut_and_what_cannot_be_one_is_refused() {
    let gateway = gateway("password");
    let long = "0123456789".repeat(10);
    assert_eq!(gateway.feed(&["password", "set"], long.as_bytes()), 0);
    Client::dial(&gateway).await.hello(&by(&long)).await;
    let (error, _) = Client::dial(&gateway).await.denied(&by(&long[..72])).await;
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISMATCH");
    // A hash from elsewhere: jBCrypt's vector of cost 10 for "abcdefghijklmnopqrstuvwxyz".
    let hash = b"$2a$10$fVH8e28OQRj9tqiDXs1e1uxpsjN0c7II7YPKXua2NAKYvM6iQk7dq";
    assert_eq!(
        gateway.feed(&["password", "set", "guest", "--hash"], hash),
        0
    );
    let guest =
        |password: &str| Connect::bare().auth(json!({ "password": password, "user": "guest" }));
    let alphabet = "abcdefghijklmnopqrstuvwxyz";
    Client::dial(&gateway).await.hello(&guest(alphabet)).await;
    let (error, _) = Client::dial(&gateway)
        .await
        .denied(&guest(&format!("{alphabet}\0")))
        .await;
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISMATCH");
    for (args, input) in [
        (&["password", "set"][..], "short"),
        (&["password", "set"], "aaaaaaaaaaaaaaaaaaaa"),
        (&["password", "set", "no name"], PASSWORD),
        (
            &["password", "set", "x", "--hash"],
            "$2a$04$zVHmKQtGGQob.b/Nc7l9NO8UlrYcW05FiuCj/SxsFO/ZtiN9.mNzy",
        ),
        (&["password", "set", "x", "--hash"], PASSWORD),
    ] {
        let mut child = gateway
            .command(&[args, &["--json"]].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("PASSWORD_INVALID"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_has_gets_the_same_answer_and_takes_as_long() {
    let gateway = gateway("password");
    assert_eq!(
        gateway.feed(&["password", "set", "ann"], PASSWORD.as_bytes()),
        0
    );
    let (mut took, mut said) = ([Duration::MAX; 2], vec![]);
    for _ in 0..4 {
        for (at, name) in ["ann", "bob"].into_iter().enumerate() {
            let wrong = Connect::bare().auth(json!({ "password": "wrong", "user": name }));
            let mut client = Client::dial(&gateway).await;
            let began = Instant::now();
            let (error, close) = client.denied(&wrong).await;
            took[at] = took[at].min(began.elapsed());
            said.push((error, close));
        }
    }
    assert!(said.iter().all(|one| *one == said[0]), "{said:?}");
    // One look each, whether there is such a name or not; the time is that of the look, give or take what else runs here.
    let mut admin = crate::support::ws::admin(&gateway).await;
    let mut looks = 0;
    // What a room says of itself may be a moment old.
    for _ in 0..200 {
        looks = slow_looks(&admin.get("status", json!({})).await);
        if looks >= 8 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(looks, 8);
    let ratio = took[1].as_secs_f64() / took[0].as_secs_f64();
    assert!((0.1..10.0).contains(&ratio), "{took:?}");
}

/// A look at each of a name's hashes takes as long as the dearest: a cheap one from elsewhere says no name.
#[tokio::test(flavor = "multi_thread")]
async fn names_with_cheaper_hashes_take_as_long_as_the_dearest() {
    let gateway = Gateway::with(&[
        ("gateway.auth.mode", "password"),
        ("gateway.auth.bcrypt_cost", "13"),
    ]);
    let cheap = b"$2a$10$fVH8e28OQRj9tqiDXs1e1uxpsjN0c7II7YPKXua2NAKYvM6iQk7dq";
    let cheap = gateway.feed(&["password", "set", "cheap", "--hash"], cheap);
    assert_eq!(cheap, 0);
    assert_eq!(
        gateway.feed(&["password", "set", "dear"], PASSWORD.as_bytes()),
        0
    );
    let mut took = [Duration::MAX; 3];
    for _ in 0..3 {
        for (at, name) in ["dear", "cheap", "nobody"].into_iter().enumerate() {
            let wrong = Connect::bare().auth(json!({ "password": "wrong", "user": name }));
            let mut client = Client::dial(&gateway).await;
            let began = Instant::now();
            client.denied(&wrong).await;
            took[at] = took[at].min(began.elapsed());
        }
    }
    for one in took {
        let ratio = one.as_secs_f64() / took[0].as_secs_f64();
        // The cheap one alone would be an eighth.
        assert!((0.5..2.0).contains(&ratio), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_password_costs_a_chosen_token_nothing_where_both_are_taken() {
    let mut gateway = Gateway::prepared(&[
        ("gateway.auth.mode", "token+password"),
        ("gateway.auth.bcrypt_cost", "10"),
    ]);
    let chosen = "a-token-that-a-person-chose-himself";
    gateway.set("PORTCULLIS_GATEWAY_TOKEN", chosen);
    gateway.launch();
    assert_eq!(gateway.feed(&["password", "set"], PASSWORD.as_bytes()), 0);
    let token = Connect::bare().auth(json!({ "token": chosen }));
    for _ in 0..12 {
        let hello = Client::dial(&gateway).await.hello(&by(PASSWORD)).await;
        assert_eq!(hello["auth"]["method"], "password");
    }
    Client::dial(&gateway).await.hello(&token).await;
    // Beside a right password a token is a guess all the same: ten, and no more are looked at.
    let both = Connect::bare()
        .auth(json!({ "token": "some-other-token-of-a-person", "password": PASSWORD }));
    for _ in 0..10 {
        Client::dial(&gateway).await.hello(&both).await;
    }
    Client::dial(&gateway).await.hello(&both).await;
    let (error, _) = Client::dial(&gateway).await.denied(&token).await;
    assert_eq!(error["details"]["code"], "AUTH_RATE_LIMITED");
    Client::dial(&gateway).await.hello(&by(PASSWORD)).await;
}

/// GHSA-w9f5-8q83-qwpx: with a made-up device token beside it a guess at the password was not counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_device_token_beside_a_password_turns_no_limit_off() {
    let gateway = gateway("password");
    assert_eq!(gateway.feed(&["password", "set"], PASSWORD.as_bytes()), 0);
    let (stranger, paired) = (Device::new(), Device::new());
    let hello = Client::dial(&gateway)
        .await
        .hello(&by(PASSWORD).device(&paired))
        .await;
    let real = hello["auth"]["deviceToken"].as_str().unwrap().to_owned();
    let made_up = |n: u8| Token::from_random(TokenKind::Device, &[n; 32]);
    // A stranger's device counts by its address, a paired one for itself: each has ten looks.
    for (device, most) in [(&stranger, 10), (&paired, 20)] {
        let with = |password: &str, token: &str| {
            Connect::bare()
                .auth(json!({ "password": password, "deviceToken": token }))
                .device(device)
        };
        for n in 0..30 {
            let token = match n % 3 {
                0 => made_up(n).expose().to_owned(),
                1 => "x".to_owned(),
                _ => format!("{real}x"),
            };
            let guess = with(&format!("guess number {n} and {most}"), &token);
            Client::dial(&gateway).await.denied(&guess).await;
        }
        // What the room says of itself may be a moment old; the first look was the right one.
        let mut operator = crate::support::ws::admin(&gateway).await;
        let mut looks = 0;
        for _ in 0..20 {
            looks = slow_looks(&operator.get("status", json!({})).await);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(looks, 1 + most);
        // The right one is not looked at either, with or without it.
        let right = with(PASSWORD, made_up(99).expose());
        Client::dial(&gateway).await.denied(&right).await;
        let (error, _) = Client::dial(&gateway)
            .await
            .denied(&by(PASSWORD).device(device))
            .await;
        assert_eq!(error["details"]["code"], "AUTH_RATE_LIMITED", "{error}");
    }
    // A real one opens for its own device, whatever was guessed: nobody is locked out by it.
    let own = Connect::bare()
        .auth(json!({ "deviceToken": real }))
        .device(&paired);
    Client::dial(&gateway).await.hello(&own).await;
}

/// Nobody has set a cost: what is kept has the default's.
#[test]
fn a_kept_password_has_cost_12_by_default() {
    let mut gateway = Gateway::with(&[("gateway.auth.mode", "password")]);
    assert_eq!(
        gateway.feed(&["password", "set", "ann"], PASSWORD.as_bytes()),
        0
    );
    assert_eq!(gateway.stop(), 0);
    let kept = rusqlite::Connection::open(gateway.state().join("state.db")).unwrap();
    let mut rows = kept
        .prepare("SELECT CAST(payload AS TEXT) FROM object WHERE kind = 'auth.password'")
        .unwrap();
    let rows = rows.query_map([], |row| row.get(0));
    let rows: Vec<String> = rows.unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let row: Value = serde_json::from_str(&rows[0]).unwrap();
    let hash = row["hash"].as_str().unwrap();
    assert!(
        row["name"] == "ann" && hash.starts_with("pc1:$2b$12$"),
        "{row}"
    );
}

fn slow_looks(status: &Value) -> u64 {
    let rooms = status["portcullis"]["rooms"].as_array().unwrap();
    let auth = rooms.iter().find(|room| room["name"] == "auth").unwrap();
    let facts = auth["facts"].as_array().unwrap();
    let fact = facts.iter().find(|fact| fact[0] == "slow looks").unwrap();
    fact[1].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_guesses_ten_are_looked_at_and_the_honest_come_in_meanwhile() {
    let gateway = Gateway::with(&[
        ("gateway.auth.mode", "token+password"),
        ("gateway.auth.bcrypt_cost", "10"),
        ("gateway.limits.unauthenticated_per_address", "2000"),
        ("gateway.limits.unauthenticated_total", "4000"),
    ]);
    assert_eq!(gateway.feed(&["password", "set"], PASSWORD.as_bytes()), 0);
    let device = Device::new();
    let paired = Client::dial(&gateway)
        .await
        .hello(&Connect::token().device(&device))
        .await;
    let device_token = paired["auth"]["deviceToken"].as_str().unwrap().to_owned();
    let mut silent = vec![];
    for _ in 0..500 {
        silent.push(
            TcpStream::connect(("127.0.0.1", gateway.port()))
                .await
                .unwrap(),
        );
    }
    let port = gateway.port();
    let guessers: Vec<_> = (0..1000)
        .map(|n| {
            tokio::spawn(async move {
                let mut client = Client::dial_port(port).await.ok()?;
                let params = by(&format!("guess number {n}")).params(&client.nonce, client.ts);
                let answer = client.try_call("connect", params).await?;
                Some(answer["error"]["details"]["code"].as_str()?.to_owned())
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let own = Connect::bare()
            .auth(json!({ "deviceToken": device_token }))
            .device(&device);
        for (mut client, connect) in [
            (Client::dial(&gateway).await, Connect::token()),
            (Client::dial(&gateway).await, own),
            (Client::control(&gateway.state()).await, Connect::bare()),
        ] {
            let began = Instant::now();
            client.hello(&connect).await;
            slowest = slowest.max(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // This process guesses on the same two cores; alone it is a few milliseconds.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let (mut wrong, mut limited) = (0, 0);
    for guesser in guessers {
        match guesser.await.unwrap().as_deref() {
            Some("AUTH_PASSWORD_MISMATCH") => wrong += 1,
            Some("AUTH_RATE_LIMITED") => limited += 1,
            // Turned away by the gate of the room, or before.
            _ => {}
        }
    }
    assert!(
        (1..=10).contains(&wrong) && limited > 500,
        "{wrong} {limited}"
    );
    let mut admin = crate::support::ws::admin(&gateway).await;
    let looks = slow_looks(&admin.get("status", json!({})).await);
    assert!((1..=10).contains(&looks), "{looks}");
    let (error, _) = Client::dial(&gateway)
        .await
        .denied(&Connect::bare().auth(json!({ "token": TOKEN.replace('4', "5") })))
        .await;
    assert_eq!(error["code"], "INVALID_REQUEST");
    drop(silent);
}
