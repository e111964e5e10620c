//! A gateway with everything on, what was planted in it, and what came back.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::search::{Hit, Search};
use crate::support::collector::Collector;
use crate::support::gateway::Gateway;
use crate::support::ws::{Client, Connect, hex, random};

/// What was planted, and what came back.
pub struct Trial {
    pub gateway: Gateway,
    pub collector: Collector,
    /// The agent's name: may be seen everywhere.
    pub decoy: String,
    pub canaries: Vec<(String, Vec<u8>)>,
    /// Answers, bodies, documents.
    pub said: Vec<(String, Vec<u8>)>,
    /// Arguments that look like a secret: a plan is shown to who decides on it, and lies sealed.
    pub in_plans: Vec<(String, Vec<u8>)>,
}

pub fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

impl Trial {
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let collector = Collector::start();
        let decoy = format!("decoy{}", hex(&random::<6>()));
        let mut gateway = Gateway::prepared(settings);
        let token = hex(&random::<20>());
        let elevated = format!("agents.{decoy}.elevated");
        for (name, value) in [
            ("PORTCULLIS_GATEWAY_TOKEN", token.as_str()),
            ("gateway.auth.mode", "token+password"),
            ("gateway.auth.bcrypt_cost", "10"),
            // Everything that any library of ours says.
            ("RUST_LOG", "trace"),
            ("telemetry.otlp.enabled", "true"),
            ("telemetry.otlp.endpoint", collector.endpoint()),
            (elevated.as_str(), "ask"),
        ] {
            gateway.set(name, value);
        }
        gateway.launch();
        gateway.vault_is_open();
        let identity = std::fs::read(gateway.identity()).unwrap();
        let mut trial = Self {
            gateway,
            collector,
            decoy,
            canaries: vec![],
            said: vec![],
            in_plans: vec![],
        };
        trial.know("the shared token", &token);
        trial
            .canaries
            .push(("the identity key".to_owned(), identity));
        trial
    }

    /// A new one.
    pub fn plant(&mut self, name: &str) -> String {
        let value = format!("{name}-{}", hex(&random::<12>())).replace(' ', "-");
        self.know(name, &value);
        value
    }

    /// The same with everything in it that some encoding spells otherwise.
    pub fn plant_odd(&mut self, name: &str) -> String {
        let value = format!("{name}-\"/+\\%é&<-{}", hex(&random::<12>()));
        self.know(name, &value);
        value
    }

    /// One that the gateway made.
    pub fn know(&mut self, name: &str, value: &str) {
        self.canaries
            .push((name.to_owned(), value.as_bytes().to_vec()));
    }

    pub fn keep(&mut self, what: &str, said: impl Into<Vec<u8>>) {
        self.said.push((what.to_owned(), said.into()));
    }

    /// Asks, and keeps the answer.
    pub async fn ask(&mut self, client: &mut Client, method: &str, params: Value) -> Value {
        let answer = client.call(method, params).await;
        self.keep(method, answer.to_string());
        answer
    }

    /// Asks, and keeps the answer but for what it gives.
    pub async fn given(
        &mut self,
        client: &mut Client,
        method: &str,
        params: Value,
        key: &str,
    ) -> String {
        let mut answer = client.call(method, params).await;
        assert_eq!(answer["ok"], true, "{method}: {answer}");
        let given = answer["payload"][key].take();
        self.keep(method, answer.to_string());
        given.as_str().unwrap().to_owned()
    }

    pub fn http(&mut self, request: &str) -> String {
        let answer = self.gateway.http(request);
        let line = request.lines().next().unwrap_or_default().to_owned();
        self.keep(&line, answer.as_str());
        answer
    }

    pub fn cli(&mut self, args: &[&str]) {
        let output = self.gateway.cli(args);
        self.keep(&args.join(" "), [output.stdout, output.stderr].concat());
    }

    pub fn fed(&mut self, args: &[&str], input: &str) {
        use std::io::Write as _;
        use std::process::Stdio;
        let mut command = self.gateway.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        self.keep(&args.join(" "), [output.stdout, output.stderr].concat());
    }

    /// Comes in, or not; what is said of it is kept.
    pub async fn connect(&mut self, what: &str, connect: &Connect<'_>) -> bool {
        let mut client = Client::dial(&self.gateway).await;
        let params = connect.params(&client.nonce, client.ts);
        let id = client.ask("connect", params).await;
        let mut answer = client.answer(&id).await;
        let is_in = answer["ok"] == true;
        if is_in {
            // What it is given for the first time.
            let token = answer["payload"]["auth"]["deviceToken"].take();
            if let Some(token) = token.as_str() {
                self.know(&format!("a device's token ({what})"), token);
            }
        } else {
            let (_, reason) = client.closed().await;
            self.keep(&format!("close reason, {what}"), reason);
        }
        self.keep(what, answer.to_string());
        is_in
    }

    pub fn search(&self) -> Search {
        Search::of(&[&self.canaries[..], &self.in_plans].concat())
    }

    /// Both: what must be found there, and what must not.
    pub fn look(
        &self,
        place: &str,
        look: impl Fn(&Search) -> BTreeSet<Hit>,
        hits: &mut BTreeSet<Hit>,
    ) {
        self.look_beside(&self.decoy, place, look, hits);
    }

    /// The same where this stands, and no agent's name does.
    pub fn look_beside(
        &self,
        decoy: &str,
        place: &str,
        look: impl Fn(&Search) -> BTreeSet<Hit>,
        hits: &mut BTreeSet<Hit>,
    ) {
        let decoy = Search::of(&[("decoy".to_owned(), decoy.as_bytes().to_vec())]);
        assert!(
            !look(&decoy).is_empty(),
            "a leak would not be seen: {place}"
        );
        hits.extend(look(&self.search()));
    }
}
