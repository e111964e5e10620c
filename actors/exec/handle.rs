//! The way to runs.

use std::time::Duration;

use portcullis_core::auth::{Principal, Whose};
use portcullis_core::ids::{DeviceId, RunId};
use portcullis_core::policy::Judgement;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::actor::{Exec, not_there};
use super::messages::{
    Accepted, Attached, Begin, ExecEvent, ExecMsg, ExecRefusal, ExecWiring, JudgeAsk, OnlyAsk,
    RunRequest, Spared,
};
use crate::sandbox_pool::{Input, NotTaken, Piece, RunInput, RunInputs, Size, Taken};
use crate::supervision::{CallError, Handle, Policy, TreeBuilder};

/// Freezing a plan may read a large program, and a first box's profile waits for the drivers' proof.
const RUN_WITHIN: Duration = Duration::from_mins(1);
const WITHIN: Duration = Duration::from_secs(5);
/// TERM, a moment, KILL, and the outcome.
const END_WITHIN: Duration = Duration::from_secs(15);
/// A piece of standard input waits so long for a command that does not read.
const INPUT_WITHIN: Duration = Duration::from_secs(2);
/// Requests the room takes at once.
const CAPACITY: usize = 1024;
/// For the runs to end and their outcomes to be recorded.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Runs, for the rooms above. Clone it freely; it survives restarts of the room.
#[derive(Clone, Debug)]
pub struct ExecHandle(Handle<ExecMsg>);

impl ExecHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: ExecWiring) -> Self {
        let policy = Policy::new(CAPACITY).stop_within(STOP_WITHIN);
        Self(tree.room::<Exec>(policy, wiring))
    }

    /// Freezes a plan, asks for it, and runs it. Events follow on `events`, ending with [`ExecEvent::Ended`]; a full channel makes the run
    /// wait; dropping the receiver ends the run after two seconds, and withdraws its question.
    ///
    /// # Errors
    /// [`ExecRefusal`]: no event follows.
    pub async fn run(
        &self,
        request: RunRequest,
        events: mpsc::Sender<ExecEvent>,
    ) -> Result<Accepted, ExecRefusal> {
        self.begin(request, None, events).await
    }

    /// Freezes the same plan by the same rules and asks for it, without running it: the request's key is the question's id, and
    /// [`Self::run`] with this key by the same principal uses the answer, once. [`ExecEvent::Ended`] follows on `events` with the status
    /// `allowed`, or why not. Dropping the receiver withdraws the question while nobody has answered.
    ///
    /// # Errors
    /// [`ExecRefusal`]: no event follows.
    pub async fn ask(
        &self,
        request: RunRequest,
        how: OnlyAsk,
        events: mpsc::Sender<ExecEvent>,
    ) -> Result<Accepted, ExecRefusal> {
        self.begin(request, Some(how), events).await
    }

    async fn begin(
        &self,
        request: RunRequest,
        only_ask: Option<OnlyAsk>,
        events: mpsc::Sender<ExecEvent>,
    ) -> Result<Accepted, ExecRefusal> {
        let begin = Box::new(Begin {
            request,
            only_ask,
            events,
        });
        self.0
            .call(RUN_WITHIN, |reply| ExecMsg::Run(begin, reply))
            .await
            .map_err(|error| ExecRefusal::of_call(error, |refusal| refusal))
    }

    /// What policy would say of a command: nothing is asked, recorded or run.
    ///
    /// # Errors
    /// [`ExecRefusal`].
    pub async fn judge(&self, ask: JudgeAsk) -> Result<Judgement, ExecRefusal> {
        self.0
            .call(RUN_WITHIN, |reply| ExecMsg::Judge(ask, reply))
            .await
            .map_err(|error| ExecRefusal::of_call(error, |refusal| refusal))
    }

    /// Ends a run: TERM, a moment, KILL; its `Ended` says so. Only who began it may, on the same connection, or an administrator.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`: it is over, or not the caller's.
    pub async fn cancel(
        &self,
        run: RunId,
        by: &Principal,
        connection: &str,
    ) -> Result<(), ExecRefusal> {
        let (by, connection) = (Box::new(by.clone()), connection.to_owned());
        self.0
            .call(WITHIN, |reply| ExecMsg::Cancel {
                run,
                by,
                connection,
                reply,
            })
            .await
            .map_err(|error| ExecRefusal::of_call(error, |refusal| refusal))
    }

    /// Reads a detached run, on this connection, from byte `offset` of its output (both streams together) on: what it has written since, as
    /// far as 256 KiB of that are held (an output's `dropped` says what is not), what it writes, and its end, which is kept for five
    /// minutes. Whoever read it before gets [`ExecEvent::Detached`]. Dropping the receiver leaves the run as it is.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`: there is none, it is another's, it was not detached, or its end is kept no more.
    pub async fn attach(
        &self,
        run: RunId,
        (by, connection): (&Principal, &str),
        offset: u64,
        events: mpsc::Sender<ExecEvent>,
    ) -> Result<Attached, ExecRefusal> {
        let (by, connection) = (Box::new(by.clone()), connection.to_owned());
        self.0
            .call(WITHIN, |reply| ExecMsg::Attach {
                run,
                by,
                connection,
                offset,
                events,
                reply,
            })
            .await
            .map_err(|error| ExecRefusal::of_call(error, |refusal| refusal))
    }

    /// Gives a run a piece of standard input, which begins at byte `offset` of it. It waits a moment for the command to read; what the
    /// cell holds unread for it is never more than 64 KiB. A piece that was sent before is harmless, one behind a gap is refused. Only who
    /// began the run may.
    ///
    /// # Errors
    /// `STDIN_FULL` (nothing of it was taken: send it again), `STDIN_GAP`, `STDIN_CLOSED`, `RUN_NOT_BEGUN`, `INPUT_UNAVAILABLE`,
    /// `RUN_NOT_FOUND`.
    pub async fn stdin(
        &self,
        run: RunId,
        by: (&Principal, &str),
        (offset, data, eof): (u64, Input, bool),
    ) -> Result<Taken, ExecRefusal> {
        let (reply, answer) = oneshot::channel();
        let piece = Piece {
            offset,
            data,
            eof,
            until: Instant::now() + INPUT_WITHIN,
            reply,
        };
        let inputs = self.inputs(run, by).await?;
        answered(&inputs, RunInput::Stdin(piece), answer).await
    }

    /// Tells a run's terminal its new size. Only who began the run may.
    ///
    /// # Errors
    /// As [`Self::stdin`], and `INVALID_PARAMS` where it has no terminal.
    pub async fn resize(
        &self,
        run: RunId,
        by: (&Principal, &str),
        size: Size,
    ) -> Result<(), ExecRefusal> {
        let (told, answer) = oneshot::channel();
        let inputs = self.inputs(run, by).await?;
        answered(&inputs, RunInput::Resize(size, told), answer).await
    }

    /// Sends one of [`crate::sandbox_pool::SIGNALS`] to all of a run, or to what is in the foreground of its terminal. Only who began the
    /// run may. The run goes on, unless its command ends by it; [`Self::cancel`] ends it.
    ///
    /// # Errors
    /// As [`Self::stdin`].
    pub async fn signal(
        &self,
        run: RunId,
        by: (&Principal, &str),
        signal: u8,
    ) -> Result<(), ExecRefusal> {
        let (told, answer) = oneshot::channel();
        let inputs = self.inputs(run, by).await?;
        answered(&inputs, RunInput::Signal(signal, told), answer).await
    }

    /// The room says who may; what goes in does not pass it.
    async fn inputs(
        &self,
        run: RunId,
        (by, connection): (&Principal, &str),
    ) -> Result<RunInputs, ExecRefusal> {
        let (by, connection) = (Box::new(by.clone()), connection.to_owned());
        self.0
            .call(WITHIN, |reply| ExecMsg::Inputs {
                run,
                by,
                connection,
                reply,
            })
            .await
            .map_err(|error| ExecRefusal::of_call(error, |refusal| refusal))
    }

    /// Ends what runs, or waits to run, for those that are over, and answers when it has ended: how many. What
    /// [`Self::spare`] has spared for this very ending goes on, and belongs to the generation that lives.
    ///
    /// # Errors
    /// `DEADLINE`, `ROOM_DOWN`: not all of it was seen to end.
    pub async fn end_of(
        &self,
        whose: &Whose,
        spared: Option<Spared>,
    ) -> Result<usize, ExecRefusal> {
        let whose = whose.clone();
        self.0
            .call(END_WITHIN, |reply| ExecMsg::EndOf(whose, spared, reply))
            .await
            .map_err(|error| ExecRefusal::of_call(error, |never| match never {}))
    }

    /// Lets what runs for a device now outlive its connections, until [`Self::end_of`] is told of this ending, or
    /// [`Self::spare_not`] that it does not come. Any other ending ends it.
    ///
    /// # Errors
    /// [`ExecRefusal`].
    pub async fn spare(&self, device: &DeviceId) -> Result<Spared, ExecRefusal> {
        let device = device.clone();
        self.0
            .call(WITHIN, |reply| ExecMsg::Spare(device, reply))
            .await
            .map_err(|error| ExecRefusal::of_call(error, |never| match never {}))
    }

    /// Nothing was changed: what was spared ends with its connections again, also where they have ended meanwhile.
    pub async fn spare_not(&self, spared: Spared) {
        if let Err(error) = self.0.tell(ExecMsg::SpareNot(spared)).await {
            tracing::warn!(%error, "runs outlive their connections though nothing was changed");
        }
    }

    /// Breaks a run's actor.
    #[cfg(test)]
    pub async fn break_run(&self, run: RunId) {
        self.0.tell(ExecMsg::Break(run)).await.unwrap();
    }

    /// Runs under way, waiting ones included; 0 while the room is down.
    pub async fn live(&self) -> usize {
        self.0.call(WITHIN, ExecMsg::Live).await.unwrap_or(0)
    }
}

/// Passes it on and waits for the word on it.
async fn answered<T>(
    inputs: &RunInputs,
    input: RunInput,
    answer: oneshot::Receiver<Result<T, NotTaken>>,
) -> Result<T, ExecRefusal> {
    let whole = async {
        inputs.put(input).await;
        answer.await
    };
    match tokio::time::timeout(INPUT_WITHIN + WITHIN, whole).await {
        Ok(Ok(answer)) => answer.map_err(ExecRefusal::of_input),
        // It is over.
        Ok(Err(_)) => Err(not_there()),
        Err(_) => Err(ExecRefusal::of_call(
            CallError::<ExecRefusal>::Deadline { may_have_run: true },
            |refusal| refusal,
        )),
    }
}
