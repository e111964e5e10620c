//! What was done once and comes again: a request that changes something, as it was and in every other spelling. The act
//! must not happen twice, and nothing may change before the repeat is refused.

use serde_json::{Value, json};

use crate::protocol::signed_http::{Sent, Signer};
use crate::support::gateway::Gateway;

fn acts(gateway: &Gateway, action: &str) -> usize {
    let found = gateway.json(&["audit", "query", "--action", action]);
    let records = found["records"].as_array().unwrap();
    let intents = records
        .iter()
        .filter(|one| one["record"]["kind"] == "intent");
    intents.count()
}

fn device(gateway: &Gateway) -> Value {
    gateway.json(&["devices", "list"])["paired"][0].clone()
}

fn status(gateway: &Gateway, text: &str) -> (u16, Value) {
    let (status, mut answer) = Sent::read(&gateway.http(text));
    (status, answer["error"]["details"]["code"].take())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_that_changes_something_is_not_done_twice_in_any_spelling() {
    let gateway = Gateway::start();
    let signer = Signer::new(&gateway, &["operator.admin", "operator.pairing"]).await;
    let id = device(&gateway)["deviceId"].clone();
    let rename = |label: &str| {
        let params = json!({ "deviceId": id, "label": label }).to_string();
        signer.now(&gateway, "device.pair.rename", &params)
    };
    let label = || device(&gateway)["operatorLabel"].clone();
    let recorded = rename("first");
    assert_eq!(recorded.go(&gateway).0, 200);
    assert_eq!(label(), "first");
    assert_eq!(rename("second").go(&gateway).0, 200);
    assert_eq!(label(), "second");

    let text = recorded.text();
    let line = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.unwrap().to_owned()
    };
    let signature = line("Signature: ");
    let input = line("Signature-Input: ");
    let nonce = input.split("nonce=\"").nth(1).unwrap();
    let nonce = nonce.split('"').next().unwrap().to_owned();
    let fresh = uuid::Uuid::new_v4().simple().to_string();
    let respelled = signature.replace('+', "-").replace('/', "_");
    let parts = input.replace("\"@method\" \"@authority\"", "\"@authority\" \"@method\"");
    let params = input.replace(";alg=\"hmac-sha256\"", "") + ";alg=\"hmac-sha256\"";
    for (what, again) in [
        ("as it was", text.clone()),
        ("its nonce another", text.replace(&nonce, &fresh)),
        (
            "without padding",
            text.replace(&signature, &signature.replace("=:", ":")),
        ),
        (
            "as base64url",
            text.replace(
                &signature,
                &format!("{}:", respelled.trim_end_matches(['=', ':'])),
            ),
        ),
        ("its parts in another order", text.replace(&input, &parts)),
        (
            "its parameters in another order",
            text.replace(&input, &params),
        ),
        ("its label another", text.replace("sig=", "sig2=")),
        (
            "with a query",
            text.replace("rename HTTP", "rename?x=1 HTTP"),
        ),
        (
            "its path encoded",
            text.replace("/rpc/device.", "/rpc/device%2e"),
        ),
        (
            "its path encoded twice",
            text.replace("/rpc/device.", "/rpc/device%252e"),
        ),
        (
            "its method a socket's",
            text.replace("POST /rpc", "PUT /rpc"),
        ),
        (
            "its body respelled",
            text.replace("\"first\"", "\"f\\u0069rst\""),
        ),
    ] {
        assert!(what == "as it was" || again != text, "{what} is no change");
        let (status, code) = status(&gateway, &again);
        assert!((400..500).contains(&status), "{what}: {status} {code}");
        if what == "as it was" {
            assert_eq!((status, code), (401, json!("SIGNATURE_REPLAYED")));
        }
        assert_eq!(label(), "second", "{what}");
    }
    assert_eq!(acts(&gateway, "pairing.rename"), 2);

    // At once: each of them would make a code of its own.
    let gives = json!({ "role": "operator", "scopes": ["operator.pairing"] }).to_string();
    let raced = signer.now(&gateway, "device.pair.setupCode", &gives);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| raced.go(&gateway)))
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    let made = answers.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!(made, 1, "{answers:?}");
    assert_eq!(acts(&gateway, "pairing.setup_code"), 1);
}
