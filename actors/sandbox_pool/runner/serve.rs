//! The runner's own half: reads requests, judges them, asks the engine, answers. Several at once, in one task.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, abortable};
use futures_util::stream::FuturesUnordered;
use portcullis_core::ids::{BoxId, Hash32};
use portcullis_core::sandbox::{ImageName, Profiles};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use super::judge::Judge;
use super::wire::{Answer, Answered, Ask, Asked, Failed, Incoming, MOST_ANSWERED, MOST_ASKED};
use super::wire::{Order, frame};
use crate::sandbox_pool::actor::context;
use crate::sandbox_pool::config::SandboxPoolConfig;
use crate::sandbox_pool::docker::Docker;
use crate::sandbox_pool::driver::DriverError;
use crate::sandbox_pool::engine::EngineConfig;
use crate::sandbox_pool::spec::BoxSpec;
use crate::sandbox_pool::users::User;
use crate::sandbox_pool::wanted::neutral;
use crate::supervision::Crash;

/// Requests that are worked on at once. The gateway asks for a few for each box, and has `max_boxes` of them.
const MOST: usize = 256;

/// What a runner has read at its start.
pub struct Ground {
    judge: Judge,
    engine: EngineConfig,
}

impl Ground {
    /// Of a gateway whose state is in `state`, whose cell is `cell`, and whose labels are these. Nothing is written.
    ///
    /// # Errors
    /// There can be no boxes.
    pub fn new(
        config: SandboxPoolConfig,
        profiles: Profiles,
        state: &Path,
        cell: &[u8],
        owner: String,
        boot: String,
    ) -> Result<Self, Crash> {
        let cell_digest = Hash32::of(cell);
        let cell = state.join("run").join(format!("cell-{cell_digest}"));
        let is_root = rustix::process::geteuid().is_root();
        let users = is_root.then_some(config.uids);
        // Requests say whose box it is: this is no box's.
        let user = User::own();
        let context = context(&config, &profiles, state, cell, owner, boot, user);
        Ok(Self {
            engine: EngineConfig::here(&config),
            judge: Judge {
                neutral: neutral(&context)?,
                config,
                profiles,
                context,
                cell_digest,
                users,
            },
        })
    }

    #[cfg(test)]
    pub const fn of(judge: Judge, engine: EngineConfig) -> Self {
        Self { judge, engine }
    }
}

/// What the requests that are under way share, as it was when each began.
#[derive(Clone)]
struct Means {
    ground: Arc<Ground>,
    docker: Option<Docker>,
    /// What the names of images stand for, as the engine said last.
    pins: BTreeMap<ImageName, String>,
    /// The same, of this request.
    found: BTreeMap<ImageName, String>,
}

/// What came of one.
struct Done {
    answer: Result<Answer, Failed>,
    /// It has connected to the engine.
    docker: Option<Docker>,
    /// Images that it asked the engine for.
    found: BTreeMap<ImageName, String>,
}

/// A request that is worked on; the end without a result is its caller's.
type Work = Pin<Box<dyn Future<Output = (u64, Option<Done>)> + Send>>;

/// Serves the gateway at the other end, until that closes it.
///
/// # Errors
/// What came is no request, or the socket broke: whoever speaks so is not answered any more.
pub async fn serve(gateway: UnixStream, ground: Ground) -> io::Result<()> {
    let (from, mut to) = gateway.into_split();
    let mut incoming = Incoming::new(from, MOST_ASKED);
    let mut means = Means {
        ground: Arc::new(ground),
        docker: None,
        pins: BTreeMap::new(),
        found: BTreeMap::new(),
    };
    let mut live: FuturesUnordered<Work> = FuturesUnordered::new();
    let mut stops: BTreeMap<u64, (AbortHandle, Option<BoxId>)> = BTreeMap::new();
    loop {
        let answered = tokio::select! {
            asked = incoming.next() => {
                let Some(Asked { id, ask }) = asked? else {
                    return Ok(());
                };
                match ask {
                    Ask::Ping => Answered { id, answer: Ok(Answer::Pong) },
                    Ask::Drop(of) => {
                        if let Some((stop, _)) = stops.get(&of) {
                            stop.abort();
                        }
                        continue;
                    }
                    _ if live.len() >= MOST || stops.contains_key(&id) => {
                        let why = "too much is asked at once, or twice under one number";
                        Answered { id, answer: Err(Failed::Refused(why.to_owned())) }
                    }
                    ask => {
                        let started = match &ask {
                            Ask::Start(order) => Some(order.id.clone()),
                            _ => None,
                        };
                        if let Ask::Stop(of) = &ask {
                            // What is being made is not waited for.
                            let making = stops.values().filter(|(_, own)| own.as_ref() == Some(of));
                            making.for_each(|(stop, _)| stop.abort());
                        }
                        let (work, stop) = abortable(means.clone().answer(ask));
                        stops.insert(id, (stop, started));
                        live.push(Box::pin(async move { (id, work.await.ok()) }));
                        continue;
                    }
                }
            }
            Some((id, done)) = live.next() => {
                let of = stops.remove(&id);
                let answer = match done {
                    Some(done) => {
                        if let Some(docker) = done.docker {
                            means.docker = Some(docker);
                        }
                        means.pins.extend(done.found);
                        done.answer
                    }
                    // Dropped: nobody waits, unless its box was ended meanwhile.
                    None if of.is_some_and(|(_, own)| own.is_some()) => {
                        Err(Failed::Not("it was ended before it was made".to_owned()))
                    }
                    None => continue,
                };
                if let Err(Failed::Refused(why)) = &answer {
                    tracing::error!(why, "the gateway asked for what the configuration does not give: refused");
                }
                Answered { id, answer }
            }
        };
        to.write_all(&frame(&answered, MOST_ANSWERED)?).await?;
    }
}

impl Means {
    async fn answer(mut self, ask: Ask) -> Done {
        let before = self.docker.is_some();
        let answer = self.ask(ask).await;
        Done {
            answer,
            docker: self.docker.filter(|_| !before),
            found: self.found,
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<Answer, Failed> {
        match ask {
            Ask::Open => {
                self.docker = None;
                let docker = self.docker().await?;
                Ok(Answer::Opened(Box::new(docker.seen())))
            }
            Ask::Start(order) => {
                let docker = self.docker().await?;
                let spec = self.spec(&docker, &order).await?;
                let started = docker.start(&spec).await?;
                Ok(Answer::Started(started.init_pid, started.image_digest))
            }
            Ask::Stop(id) => {
                self.docker().await?.stop(&id).await?;
                Ok(Answer::Stopped)
            }
            Ask::Init(id) => Ok(Answer::Init(self.docker().await?.init(&id).await)),
            Ask::List => {
                let owner = self.ground.judge.context.owner.clone();
                Ok(Answer::Boxes(self.docker().await?.list(&owner).await?))
            }
            Ask::Lost => Ok(Answer::Lost(self.docker().await?.lost().await)),
            Ask::Image(name) => {
                if !self.ground.judge.knows_image(&name) {
                    let why = format!("the configuration names no image {:?}", name.as_str());
                    return Err(Failed::Refused(why));
                }
                let docker = self.docker().await?;
                let id = docker.find_image(&name).await.map_err(Failed::Not)?;
                self.found.insert(name, id.clone());
                Ok(Answer::Image(id))
            }
            Ask::Drop(_) | Ask::Ping => Err(Failed::Refused("it is no work".to_owned())),
        }
    }

    /// The engine, connected to where that was not done yet.
    async fn docker(&mut self) -> Result<Docker, Failed> {
        if let Some(docker) = &self.docker {
            return Ok(docker.clone());
        }
        let Ground { judge, engine } = &*self.ground;
        let docker = Docker::connect(&judge.context, engine).await?;
        self.docker = Some(docker.clone());
        Ok(docker)
    }

    fn pinned(&self, name: &ImageName) -> Option<String> {
        self.found
            .get(name)
            .or_else(|| self.pins.get(name))
            .cloned()
    }

    async fn spec(&mut self, docker: &Docker, order: &Order) -> Result<BoxSpec, Failed> {
        let ground = self.ground.clone();
        for name in ground.judge.images(order) {
            // One that this runner has not been asked for, as after the end of the one before.
            if self.pinned(&name).is_none() {
                let id = docker.find_image(&name).await.map_err(Failed::Not)?;
                self.found.insert(name, id);
            }
        }
        let pinned = |name: &ImageName| self.pinned(name);
        let spec = ground.judge.spec(&docker.seen(), pinned, order);
        spec.map_err(Failed::Refused)
    }
}

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Self {
        match error {
            DriverError::NoDriver { reason, fix, .. } => Self::NoDriver(reason, fix),
            DriverError::Start(why) | DriverError::Unknown(why) => Self::Not(why),
        }
    }
}
