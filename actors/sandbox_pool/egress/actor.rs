//! The loop of one box's way out has nothing to do: its task takes the connections.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use portcullis_core::egress::Refusal;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::bundle;
use super::connection::{Place, Refused, answer, serve};
use super::messages::EgressMsg;
use super::record::{self, Bucket};
use super::wiring::EgressWiring;
use crate::sandbox_pool::link::listen;
use crate::supervision::{Crash, Ctx, Flag, Paced, Room, Snapshot, TaskHandle};
use crate::vault::Phase;

/// The socket's name in the box's control folder.
const SOCKET: &str = "e";
/// At the end: for the last records.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// After a failed accept: descriptors are short.
const PAUSE: Duration = Duration::from_millis(50);

/// The actor of one box's way out.
pub struct Egress {
    wiring: Arc<EgressWiring>,
    closing: Arc<Flag<bool>>,
    gone: oneshot::Receiver<()>,
    _serving: TaskHandle,
}

impl Room for Egress {
    const NAME: &'static str = "egress";
    type Msg = EgressMsg;
    type Wiring = EgressWiring;

    async fn start(wiring: &EgressWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let wiring = Arc::new(wiring.clone());
        let (listener, folder) = listen(&wiring.run_dir, SOCKET, wiring.gid)?;
        let closing = Arc::new(Flag::new(false));
        let (going, gone) = oneshot::channel();
        let door = Door {
            place: Arc::clone(&wiring),
            ctx: ctx.clone(),
            closing: Arc::clone(&closing),
            pace: Paced::of_one(&wiring.ways.searches),
            opened: Bucket::new(wiring.ways.limits.burst, wiring.ways.limits.per_second),
            recorded: Bucket::new(wiring.ways.limits.recorded, 1),
            more: 0,
            next: 0,
        };
        trust(&wiring, &ctx, &folder).await?;
        let serving = ctx.task("egress", 0, async move {
            door.take(listener).await;
            // Its number is in the address that was bound.
            drop(folder);
            let _ = going.send(());
        });
        Ok(Self {
            wiring,
            closing,
            gone,
            _serving: serving,
        })
    }

    async fn handle(&mut self, msg: EgressMsg) -> Result<(), Crash> {
        match msg {}
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
            .with("box", &self.wiring.id)
            .with("agent", &self.wiring.whose)
            .with("rules", self.wiring.rules.texts().len())
    }

    async fn stop(self) {
        self.closing.set(true);
        let _ = timeout(LEAVE_WITHIN, self.gone).await;
    }
}

/// What the box trusts, where TLS of hosts is opened for it: before it starts what the machine trusts, and with it the authority as soon
/// as the vault is open.
async fn trust(
    wiring: &Arc<EgressWiring>,
    ctx: &Ctx<Egress>,
    folder: &OwnedFd,
) -> Result<(), Crash> {
    if wiring.terminate.is_empty() {
        return Ok(());
    }
    let Some(opener) = wiring.ways.opener.clone() else {
        return Ok(());
    };
    let names = wiring.terminate.hosts();
    let mut phase = opener.vault.phase();
    let authority = match phase.take() {
        Phase::Open => opener.authority(&names).await.ok(),
        Phase::Unsealing | Phase::Sealed => None,
    };
    bundle::write(folder, wiring.gid, &opener.bundle(authority.as_ref()))?;
    if authority.is_some() {
        return Ok(());
    }
    let (folder, gid) = (folder.try_clone()?, wiring.gid);
    ctx.task("authority", 0, async move {
        loop {
            // Seen before it is asked: what changes meanwhile is looked at once more.
            phase.take();
            if let Ok(authority) = opener.authority(&names).await {
                let text = opener.bundle(Some(&authority));
                if let Err(error) = bundle::write(&folder, gid, &text) {
                    tracing::warn!(%error, "a box cannot be given the authority that it is to trust");
                }
                return;
            }
            if phase.changed().await.is_none() {
                return;
            }
        }
    })
    .keep();
    Ok(())
}

/// Takes connections, as many as there may be.
struct Door {
    place: Arc<EgressWiring>,
    ctx: Ctx<Egress>,
    closing: Arc<Flag<bool>>,
    pace: Arc<Paced>,
    opened: Bucket,
    recorded: Bucket,
    /// Refusals that were not recorded since the last that was.
    more: u64,
    next: u64,
}

impl Door {
    async fn take(mut self, listener: UnixListener) {
        let mut closing = self.closing.reader();
        let mut live = FuturesUnordered::new();
        let mut records = FuturesUnordered::new();
        loop {
            let refused = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => match self.admit(live.len()) {
                        Ok(key) => {
                            live.push(serve(client, Place {
                                wiring: Arc::clone(&self.place),
                                ctx: self.ctx.clone(),
                                closing: self.closing.reader(),
                                pace: Arc::clone(&self.pace),
                                key,
                                began: Instant::now(),
                                runs: self.place.runs.get(),
                            }));
                            None
                        }
                        Err(why) => Some(self.turn_away(&client, why)),
                    },
                    Err(error) => {
                        tracing::warn!(id = %self.place.id, %error, "a connection of a box could not be taken");
                        sleep(PAUSE).await;
                        None
                    }
                },
                Some(refused) = live.next() => refused,
                Some(()) = records.next() => None,
                _ = closing.until(|closing| *closing) => break,
            };
            if let Some(refused) = refused
                && let Some(more) = self.may_record()
            {
                let place = Arc::clone(&self.place);
                records.push(async move { record::deny(&place, &refused, more).await });
            }
        }
        drop(listener);
        // Each says how it ended.
        while let Some(refused) = live.next().await {
            if let Some(refused) = refused {
                record::deny(&self.place, &refused, std::mem::take(&mut self.more)).await;
            }
        }
        while records.next().await.is_some() {}
        if self.more > 0 {
            self.place.ways.audit.passed_over(self.more);
        }
    }

    fn admit(&mut self, live: usize) -> Result<u64, Refusal> {
        let most = self.place.ways.limits.connections;
        if !self.opened.take() {
            return Err(Refusal::Rate);
        }
        if live >= most {
            return Err(Refusal::Connections(most));
        }
        self.next += 1;
        Ok(self.next)
    }

    /// Without waiting for anything: there is no place to wait in.
    fn turn_away(&self, client: &UnixStream, why: Refusal) -> Refused {
        if let Some(answer) = answer(&self.place, &why) {
            let _ = client.try_write(&answer);
        }
        Refused {
            target: String::new(),
            why,
            runs: self.place.runs.get(),
            is_told: true,
        }
    }

    /// Who is refused hundreds of times a second must not fill the log: the next record has the number of those without one.
    fn may_record(&mut self) -> Option<u64> {
        if self.recorded.take() {
            Some(std::mem::take(&mut self.more))
        } else {
            self.more += 1;
            None
        }
    }
}
