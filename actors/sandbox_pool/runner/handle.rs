//! The way to the runner, and the engine behind it.

use std::sync::Arc;
use std::time::Duration;

use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::{Access, ImageName};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::keep::{Call, RunnerShown};
use super::wire::{Answer, Ask, Failed, Order};
use crate::sandbox_pool::docker::Seen;
use crate::sandbox_pool::driver::DriverError;
use crate::sandbox_pool::engine::no_driver;
use crate::sandbox_pool::spec::{BoxSpec, FoundBox, StartedBox};
use crate::supervision::FlagReader;

/// For what the engine is asked once: more than it is given there.
const SHORT: Duration = Duration::from_secs(20);
/// For what it has to work for: its own time-outs, one after the other, come before.
const LONG: Duration = Duration::from_mins(2);
/// How often what changes nothing the second time is asked again when a runner ended before it answered.
const TRIES: u32 = 3;

/// The runner, for the pool and its boxes.
#[derive(Clone, Debug)]
pub struct RunnerHandle {
    calls: mpsc::Sender<Call>,
    shown: FlagReader<RunnerShown>,
}

impl RunnerHandle {
    pub(in crate::sandbox_pool) const fn new(
        calls: mpsc::Sender<Call>,
        shown: FlagReader<RunnerShown>,
    ) -> Self {
        Self { calls, shown }
    }

    /// What it does.
    pub fn shown(&self) -> RunnerShown {
        self.shown.get()
    }

    /// Asks once.
    pub(super) async fn ask(&self, ask: Ask, within: Option<Duration>) -> Result<Answer, Failed> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            let gone = || Failed::Gone("the pool has ended".to_owned());
            let call = Call { ask, answer };
            self.calls.send(call).await.map_err(|_| gone())?;
            answered.await.unwrap_or_else(|_| Err(gone()))
        };
        let Some(within) = within else {
            return asking.await;
        };
        let late = |_| {
            let (within, said) = (within.as_secs(), self.shown().said);
            Err(Failed::Gone(format!(
                "it gave no answer in {within} s {said}"
            )))
        };
        let answered = timeout_at(Instant::now() + within, asking).await;
        answered.unwrap_or_else(late)
    }

    /// Asks again where a runner ended before it answered.
    async fn ask_again(&self, ask: Ask, within: Duration) -> Result<Answer, Failed> {
        let mut tries = 1;
        loop {
            match self.ask(ask.clone(), Some(within)).await {
                Err(Failed::Gone(_)) if tries < TRIES && !self.calls.is_closed() => tries += 1,
                answer => return answer,
            }
        }
    }
}

/// An engine that the runner speaks to.
#[derive(Debug, Clone)]
pub struct Remote {
    runner: RunnerHandle,
    seen: Arc<Seen>,
}

impl Remote {
    /// As [`crate::sandbox_pool::Docker::connect`], by the runner.
    ///
    /// # Errors
    /// `NO_DRIVER`, as there; or there is no runner.
    pub async fn connect(runner: &RunnerHandle) -> Result<Self, DriverError> {
        let seen = match runner.ask_again(Ask::Open, LONG).await {
            Ok(Answer::Opened(seen)) => seen,
            other => return Err(not_usable(other)),
        };
        Ok(Self {
            runner: runner.clone(),
            seen: (*seen).into(),
        })
    }

    /// What it said of the engine.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Asked once: what came of it is not known when the runner ends meanwhile, and [`Self::stop`] ends that.
    pub async fn start(&self, spec: &BoxSpec) -> Result<StartedBox, DriverError> {
        let folder = if spec.access == Access::None && spec.whose.folder().is_none() {
            String::new()
        } else {
            let name = spec.workspace.file_name().and_then(|name| name.to_str());
            name.unwrap_or_default().to_owned()
        };
        let order = Order {
            id: spec.id.clone(),
            whose: spec.whose.clone(),
            folder,
            image: spec.image.clone(),
            profile: spec.profile_hash.clone(),
            nonce: spec.nonce.clone(),
            uid: spec.uid,
            gid: spec.gid,
        };
        match self
            .runner
            .ask(Ask::Start(Box::new(order)), Some(LONG))
            .await
        {
            Ok(Answer::Started(init_pid, image_digest)) => Ok(StartedBox {
                init_pid,
                image_digest,
                child: None,
            }),
            other => Err(DriverError::Start(words(other))),
        }
    }

    /// See [`crate::sandbox_pool::Docker::stop`].
    pub async fn stop(&self, id: &BoxId) -> Result<(), DriverError> {
        match self.runner.ask_again(Ask::Stop(id.clone()), LONG).await {
            Ok(Answer::Stopped) => Ok(()),
            other => Err(DriverError::Unknown(words(other))),
        }
    }

    /// See [`crate::sandbox_pool::Docker::init`].
    pub async fn init(&self, id: &BoxId) -> Option<u32> {
        match self.runner.ask_again(Ask::Init(id.clone()), SHORT).await {
            Ok(Answer::Init(init)) => init,
            _ => None,
        }
    }

    /// This gateway's boxes.
    pub async fn list(&self) -> Result<Vec<FoundBox>, DriverError> {
        match self.runner.ask_again(Ask::List, SHORT).await {
            Ok(Answer::Boxes(found)) => Ok(found),
            other => Err(DriverError::Unknown(words(other))),
        }
    }

    /// See [`crate::sandbox_pool::Docker::find_image`].
    pub async fn find_image(&self, name: &ImageName) -> Result<String, String> {
        let ask = Ask::Image(name.clone());
        match self.runner.ask_again(ask, SHORT).await {
            Ok(Answer::Image(id)) => Ok(id),
            other => Err(words(other)),
        }
    }

    /// Returns when the engine is lost, or is another one than was seen. The end of a runner is neither: the next one looks.
    pub async fn lost(&self) -> String {
        loop {
            match self.runner.ask(Ask::Lost, None).await {
                Ok(Answer::Lost(why)) => return why,
                Err(Failed::Gone(_)) if !self.runner.calls.is_closed() => {}
                other => return words(other),
            }
            match Self::connect(&self.runner).await {
                Ok(now) if now.seen == self.seen => {}
                Ok(_) => return "it is another one than it was".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }
}

fn not_usable(answer: Result<Answer, Failed>) -> DriverError {
    match answer {
        Err(Failed::NoDriver(reason, fix)) => no_driver(reason, &fix),
        other => no_driver(
            words(other),
            "look at the gateway's log; it starts its runner again by itself",
        ),
    }
}

fn words(answer: Result<Answer, Failed>) -> String {
    match answer {
        Err(Failed::Not(why)) => why,
        Err(Failed::NoDriver(reason, fix)) => format!("{reason}; {fix}"),
        Err(Failed::Refused(why)) => format!("the runner refuses it: {why}"),
        Err(Failed::Gone(why)) => {
            format!("the process that speaks to the engine ended before it answered ({why})")
        }
        Ok(_) => "the runner answered something else".to_owned(),
    }
}
