//! The threads behind a [`Store`](super::Store): blocking work, away from every loop.

use super::engine::Engine;
use super::messages::{Answer, CommitError, Job, Op, Revision, StoreError};
use crate::supervision::Flag;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Receiver;

/// Most commits that share one sync.
pub(super) const GROUP: usize = 64;
/// Longest that the first commit of a group waits for the others to be applied.
const GROUP_TIME: Duration = Duration::from_millis(2);

type CommitReply = Answer<Result<Vec<Revision>, CommitError>>;

/// Commits in groups: whatever queued while the last group was on its way to the disk goes in one transaction with
/// one sync. A lone commit waits for nobody. In memory this thread reads as well.
pub(super) fn write(engine: Engine, mut jobs: Receiver<Job>, revision: &Flag<u64>) {
    let (mut next, mut wrote) = (None, false);
    while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
        match job {
            Job::Commit { ops, reply } => {
                wrote = true;
                next = group(&engine, &mut jobs, (ops, reply), revision);
            }
            Job::Close { reply } => {
                let result = engine.close();
                reply.send(result);
                return;
            }
            Job::Scrub { reply } => reply.send(engine.scrub()),
            job => read_one(&engine, job),
        }
    }
    // Whoever opened it and changed nothing may have found that it is not his to change.
    if wrote {
        drop(engine.close());
    }
}

/// Serves reads until it is closed or every handle is gone.
pub(super) fn read(engine: Engine, mut jobs: Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        match job {
            Job::Close { reply } => {
                drop(engine);
                reply.send(Ok(()));
                return;
            }
            job => read_one(&engine, job),
        }
    }
}

fn read_one(engine: &Engine, job: Job) {
    match job {
        Job::Get { kind, id, reply } => reply.send(engine.get(&kind, &id)),
        Job::List {
            kind,
            after,
            limit,
            reply,
        } => {
            reply.send(engine.list(&kind, after.as_deref().unwrap_or(""), limit));
        }
        Job::Entries {
            kind,
            id,
            after,
            limit,
            reply,
        } => reply.send(engine.entries(&kind, &id, after, limit)),
        Job::HighestIntent { reply } => reply.send(engine.highest_intent()),
        // Not a reader's: dropping the reply tells the caller that nothing ran here.
        Job::Commit { .. } | Job::Scrub { .. } | Job::Close { .. } => {}
    }
}

/// Applies a group, commits it, then answers all of it. Returns a job that was taken but is no commit.
fn group(
    engine: &Engine,
    jobs: &mut Receiver<Job>,
    first: (Vec<Op>, CommitReply),
    revision: &Flag<u64>,
) -> Option<Job> {
    let mut answers = Vec::with_capacity(GROUP);
    let mut left_over = None;
    let mut failed = engine.begin().err();
    let deadline = Instant::now() + GROUP_TIME;
    let mut waiting = Some(first);
    while let Some((ops, reply)) = waiting.take() {
        let result = match &failed {
            Some(error) => Err(error.clone().into()),
            None => engine.apply(&ops),
        };
        if let Err(CommitError::Store(error)) = &result {
            failed.get_or_insert_with(|| error.clone());
        }
        answers.push((reply, result));
        if answers.len() == GROUP || Instant::now() >= deadline {
            break;
        }
        match jobs.try_recv() {
            Ok(Job::Commit { ops, reply }) => waiting = Some((ops, reply)),
            Ok(job) => left_over = Some(job),
            Err(_) => {}
        }
    }
    let end = match failed {
        Some(error) => Err(error),
        None => engine.commit(),
    };
    match &end {
        // Before any answer: what is told of this change, the audit log knows to be in the state.
        Ok(()) => {
            if let Ok(reached) = engine.revision() {
                revision.set(reached);
            }
        }
        Err(_) => engine.rollback(),
    }
    for (reply, result) in answers {
        // Even a conflict was judged on rows that a failed group did not write.
        reply.send(match &end {
            Ok(()) => result,
            Err(error) => Err(CommitError::Store(StoreError::clone(error))),
        });
    }
    left_over
}
