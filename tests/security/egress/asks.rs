//! Hosts that are not on the list, where a person may be asked: nothing is dialled before the word, and nothing goes on after it.

use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::sandbox_pool::HostQuestions;
use portcullis_actors::sandbox_pool::egress::EgressLimits;
use portcullis_core::approval::{HostAsked, HostWord};
use portcullis_core::ids::{AgentId, BoxId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::upstream::Upstream;
use super::{Answer, PATIENCE, Scene};
use portcullis_actors::supervision::{FeedItem, FeedReader};

/// One way out whose agent may ask.
struct Place {
    scene: Scene,
    host: Upstream,
    questions: HostQuestions,
    asked: FeedReader<HostAsked>,
    at: String,
}

impl Place {
    async fn new(limits: EgressLimits) -> Self {
        let host = Upstream::plain().await;
        let questions = HostQuestions::new();
        let asked = questions.asks.subscribe();
        let rules = [format!("allowed.test:{}", host.port)];
        let networks = &["127.0.0.0/8"];
        let scene = Scene::built(
            &rules,
            networks,
            limits,
            None,
            None,
            Some(questions.clone()),
        )
        .await;
        scene.names.set("other.test", &[&["127.0.0.1"]]);
        scene.names.set("metadata.test", &[&["169.254.169.254"]]);
        let at = format!("other.test:{}", host.port);
        Self {
            scene,
            host,
            questions,
            asked,
            at,
        }
    }

    /// Says something of this host, of one box or of all.
    fn say(&self, host: &str, only: Option<&str>, is_allowed: bool) {
        let word = HostWord {
            agent: AgentId::new("demo").unwrap(),
            only: only.map(|id| BoxId::new(id).unwrap()),
            host: host.to_owned(),
            is_allowed,
            id: "pc-1".to_owned(),
        };
        self.questions.words.set(Arc::from([word]));
    }

    /// What was asked next, soon.
    async fn next(&mut self) -> Option<HostAsked> {
        match tokio::time::timeout(Duration::from_millis(500), self.asked.next()).await {
            Ok(FeedItem::Event(asked)) => Some(asked.event.clone()),
            _ => None,
        }
    }

    fn request(&self, path: &str) -> String {
        format!(
            "GET http://{0}{path} HTTP/1.1\r\nHost: {0}\r\n\r\n",
            self.at
        )
    }
}

fn limits(ask: Duration) -> EgressLimits {
    EgressLimits {
        ask,
        ..EgressLimits::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_waits_for_a_persons_word_and_its_connections_end_with_it() {
    let mut place = Place::new(limits(PATIENCE)).await;
    let mut waiting = place.scene.dial().await;
    waiting
        .write_all(place.request("/stays").as_bytes())
        .await
        .unwrap();
    let asked = place.next().await.expect("asked");
    assert_eq!(
        (asked.agent.as_str(), asked.id.as_str(), asked.host.as_str()),
        ("demo", "0123456789ab", place.at.as_str())
    );
    // Another box's, another host's word is none; each is seen before the next comes.
    for (host, only) in [
        (place.at.clone(), Some("0123456789ac")),
        ("other.test:1".to_owned(), None),
    ] {
        place.say(&host, only, true);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(place.host.seen.connections(), 0, "{host} {only:?}");
    }
    assert!(
        place.scene.names.asked().is_empty(),
        "nothing is looked up before"
    );

    place.say(&place.at.clone(), Some("0123456789ab"), true);
    let mut first = vec![0; 15];
    waiting.read_exact(&mut first).await.unwrap();
    assert_eq!(first, b"HTTP/1.1 200 OK");
    let allowed = place.scene.records("egress.allow", 1).await;
    assert_eq!(allowed[0]["rule"], "egress approval pc-1");
    // A second one needs no question.
    assert!(
        place
            .scene
            .ask(place.request("/").as_bytes())
            .await
            .0
            .ends_with("hello")
    );
    assert_eq!(place.next().await, None);

    // Taken back: what goes through it ends.
    place.questions.words.set(Arc::from([]));
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, waiting.read_to_end(&mut rest))
        .await
        .expect("it ends");
    let ends = place.scene.records("egress.end", 2).await;
    assert!(
        ends.iter().any(|end| end["detail"]["result"] == "said-no"),
        "{ends:#?}"
    );
    place.scene.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_word_or_after_a_no_nothing_is_reached_and_the_answer_says_so() {
    let mut place = Place::new(limits(Duration::from_millis(300))).await;
    let answer = place.scene.ask(place.request("/").as_bytes()).await;
    assert_eq!((answer.status(), answer.word()), ("403", "asked"));
    assert!(
        answer.0.contains("portcullis approvals list") && answer.0.contains("try again"),
        "{answer:?}"
    );
    assert!(place.next().await.is_some());
    place.say(&place.at.clone(), None, false);
    let answer = place.scene.ask(place.request("/").as_bytes()).await;
    assert_eq!((answer.status(), answer.word()), ("403", "said-no"));
    assert_eq!(place.next().await, None, "a no is not asked about again");
    // Addresses are nobody's question, and a word allows no address that is none of the world's.
    for target in ["127.0.0.1", "[::1]", "169.254.169.254", "0x7f.1"] {
        let answer = place
            .scene
            .ask(format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())
            .await;
        assert_eq!(answer.status(), "403", "{answer:?}");
    }
    assert_eq!(place.next().await, None);
    place.say("metadata.test:80", None, true);
    let answer = place
        .scene
        .ask(b"GET http://metadata.test/ HTTP/1.1\r\nHost: metadata.test\r\n\r\n")
        .await;
    assert_eq!((answer.status(), answer.word()), ("403", "metadata"));
    assert_eq!(place.host.seen.connections(), 0);
    let denied = place.scene.records("egress.deny", 7).await;
    for reason in ["asked", "said-no", "address-not-listed", "metadata"] {
        assert!(
            denied
                .iter()
                .any(|record| record["detail"]["reason"] == reason),
            "{reason}"
        );
    }
    // Where nobody is to be asked, nobody is.
    let rules = ["allowed.test:80".to_owned()];
    let scene = Scene::new(&rules, &[], limits(PATIENCE)).await;
    let answer: Answer = scene
        .ask(b"GET http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n")
        .await;
    assert_eq!(answer.word(), "not-listed");
    scene.tree.stop().await;
    place.scene.tree.stop().await;
}
