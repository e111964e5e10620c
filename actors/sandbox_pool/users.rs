//! Which user of the host boxes have. A root gateway gives each agent and each share one of its own, durably before the first box has it,
//! and looks once in its life whether their folder is theirs. Any other gateway has only its own user to give.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use portcullis_core::audit::{Entry, Outcome};
use portcullis_core::codes;
use portcullis_core::ids::AgentId;
use portcullis_core::sandbox::{Access, Line, Owner, Profile, Shown, UserRow, Users};
use tokio::sync::oneshot;

use super::actor::{SandboxPool, SandboxPoolWiring};
use super::drivers::{MOST_WAITING, Waiting};
use super::messages::{PoolError, SandboxPoolMsg};
use super::reown::{self, Taken};
use super::wanted::Unmet;
use crate::act::{ActError, act};
use crate::audit::AuditHandle;
use crate::store::{Op, Revision, Store};
use crate::supervision::{Crash, Ctx};

/// Its rows in the store: a number each, which is never removed.
const KIND: &str = "sandbox.user";

/// Between two looks for a thread.
const PAUSE: Duration = Duration::from_millis(20);

/// Where it is kept who has which.
#[derive(Clone)]
pub struct UserBook {
    /// The rows.
    pub store: Store,
    /// What says that each was given.
    pub record: Record,
}

/// See [`UserBook::record`].
#[derive(Clone)]
pub enum Record {
    /// The log.
    Log(AuditHandle),
    /// Nothing, for tests of the pool alone.
    #[cfg(test)]
    Nowhere,
}

/// uid and gid of everything in a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Never 0.
    pub uid: u32,
    /// Never 0.
    pub gid: u32,
}

impl User {
    /// This process' own.
    pub fn own() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }
}

/// What the room of a root gateway knows of it.
pub struct Accounts {
    users: Users,
    /// Of each row.
    revisions: BTreeMap<u32, u64>,
    /// Whose user is durable, and whether their folder was seen to be theirs.
    settled: BTreeMap<Owner, bool>,
    /// Who is being given one, or whose folder is looked at, and what waits for that.
    asked: BTreeMap<Owner, Vec<Waiting>>,
}

/// What is to be done before an owner's boxes have their user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    uid: u32,
    /// It is to be written down.
    is_new: bool,
    /// The one that it had, and that row's revision.
    had: Option<(u32, u64)>,
    folder: Folder,
}

/// See [`Job`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Folder {
    /// Its boxes see none.
    Unseen,
    /// It is its own, or yet to be made.
    Own,
    /// It is of a user whom nobody has.
    Of(u32),
}

/// What came of it.
pub struct Said {
    /// The revisions of what was written, or why nothing was.
    given: Result<Vec<Revision>, ActError>,
    /// Why its folder is not its own.
    folder: Result<(), PoolError>,
}

impl Accounts {
    /// Of the state; none where this gateway is not root.
    pub async fn restore(wiring: &SandboxPoolWiring) -> Result<Option<Self>, Crash> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let head = match &wiring.users.record {
            Record::Log(audit) => audit.head().await?.seq.0,
            #[cfg(test)]
            Record::Nowhere => u64::MAX,
        };
        let objects = wiring.users.store.list_all(KIND).await?;
        let mut revisions = BTreeMap::new();
        for object in &objects {
            if let Ok(uid) = object.id.parse() {
                revisions.insert(uid, object.rev);
            }
        }
        let rows = objects.into_iter().map(|object| {
            let row = serde_json::from_slice::<UserRow>(&object.payload).ok();
            (object.id, row.filter(|_| object.intent <= head))
        });
        let folders = folders(&wiring.state.join("workspaces"));
        let users = Users::restore(wiring.config.uids, rows, folders).map_err(|error| {
            Crash::new(format!(
                "{error}: no agent is given another's user; restore state.db, audit and keys from one backup"
            ))
        })?;
        Ok(Some(Self {
            users,
            revisions,
            settled: BTreeMap::new(),
            asked: BTreeMap::new(),
        }))
    }

    /// Of the trials' own boxes.
    ///
    /// # Errors
    /// Every number of the range is somebody's.
    pub fn of_trials(&self) -> Result<User, Crash> {
        let uid = self.users.of_trials().ok_or_else(|| {
            let range = self.users.range();
            Crash::new(format!(
                "every user of [sandbox] uids = \"{range}\" is an agent's, and trials of the sandbox need one: name more"
            ))
        })?;
        Ok(User { uid, gid: uid })
    }
}

impl Accounts {
    fn plan(&mut self, owner: &Owner, access: Access, workspaces: &Path) -> Result<Job, PoolError> {
        let name = owner.folder();
        let found = match access {
            Access::None => None,
            Access::Ro | Access::Rw => reown::owner(workspaces, &name)
                .map_err(|error| PoolError::Workspace(format!("workspaces/{name}: {error}")))?,
        };
        // Root's is one that was being made when a gateway was killed, or one that the operator has put there.
        let found = found.filter(|uid| *uid != 0);
        if let Some(uid) = found
            && let Some(whose) = self.users.whose(uid)
            && whose != owner.to_string()
        {
            return Err(PoolError::Workspace(format!(
                "workspaces/{name} belongs to uid {uid}, which is {whose}'s"
            )));
        }
        let known = self.users.of(owner);
        let had = self.users.had(owner).filter(|_| known.is_none());
        let had = had.and_then(|had| Some((had, *self.revisions.get(&had)?)));
        let uid = if let Some(uid) = known {
            uid
        } else {
            let next = self.users.next(owner);
            let uid = next.ok_or_else(|| PoolError::Users(self.users.range()))?;
            self.users.give(owner, uid);
            uid
        };
        let folder = match (access, found) {
            (Access::None, _) => Folder::Unseen,
            (_, Some(other)) if other != uid => Folder::Of(other),
            _ => Folder::Own,
        };
        // Given in this life, or read at its start.
        let is_new = !self.revisions.contains_key(&uid);
        Ok(Job {
            uid,
            is_new,
            had,
            folder,
        })
    }
}

/// Whose each folder is now.
fn folders(workspaces: &Path) -> BTreeMap<String, u32> {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(workspaces)
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // Of trials.
            let is_ours = !name.starts_with('.');
            is_ours.then_some((name, entry.metadata().ok()?.uid()))
        })
        .collect()
}

impl SandboxPool {
    /// Of the boxes of an agent with this profile.
    pub(super) fn user(&self, agent: Option<&AgentId>, profile: &Profile) -> Result<User, Unmet> {
        let Some(accounts) = &self.accounts else {
            let (uid, gid) = (self.context.uid, self.context.gid);
            return Ok(User { uid, gid });
        };
        let Some(agent) = agent else {
            return Err(Unmet::Nobody);
        };
        let owner = Owner::of(profile, agent);
        let sees_none = profile.workspace == Access::None;
        let is_settled = accounts.settled.get(&owner);
        match accounts.users.of(&owner) {
            Some(uid) if is_settled.is_some_and(|seen| *seen || sees_none) => {
                Ok(User { uid, gid: uid })
            }
            _ => Err(Unmet::NoUser(owner, profile.workspace)),
        }
    }

    /// The same, of what is durable, whether or not their folder was looked at in this life.
    pub(super) fn had_user(&self, agent: Option<&AgentId>, profile: &Profile) -> Option<User> {
        let accounts = self.accounts.as_ref()?;
        let uid = accounts.users.of(&Owner::of(profile, agent?))?;
        let is_kept = accounts.revisions.contains_key(&uid);
        is_kept.then_some(User { uid, gid: uid })
    }

    /// The line of an explanation.
    pub(super) fn user_line(&self, agent: Option<&AgentId>, profile: &Profile) -> Line {
        let line = |value, from| Line {
            key: "uid",
            value,
            from,
        };
        let Some(accounts) = &self.accounts else {
            let own = u64::from(self.context.uid);
            let from = "the gateway's own user, which is not root: every agent's boxes have it";
            return line(Shown::Number(own), from.to_owned());
        };
        let range = accounts.users.range();
        let owner = agent.map(|agent| Owner::of(profile, agent));
        let known = owner
            .as_ref()
            .and_then(|owner| Some((owner, accounts.users.of(owner)?)));
        match known {
            Some((owner, uid)) => line(
                Shown::Number(uid.into()),
                format!("[sandbox] uids {range}, kept for {owner} alone"),
            ),
            None => line(
                Shown::Word("one of its own".to_owned()),
                format!("[sandbox] uids {range}, given before its first run"),
            ),
        }
    }

    /// Gives an owner a user, if it has none, and looks whether its folder is its own; who asks waits.
    pub(super) fn settle(&mut self, owner: Owner, access: Access, request: Option<Waiting>) {
        let Some(accounts) = &mut self.accounts else {
            return;
        };
        if let Some(waiting) = accounts.asked.get_mut(&owner) {
            match request {
                Some(request) if waiting.len() >= MOST_WAITING => {
                    let most = self.wiring.config.max_boxes;
                    self.refuse(request, PoolError::Full(most));
                }
                request => waiting.extend(request),
            }
            return;
        }
        let job = match accounts.plan(&owner, access, &self.context.workspaces) {
            Ok(job) => job,
            Err(refusal) => {
                if let Some(request) = request {
                    self.refuse(request, refusal);
                }
                return;
            }
        };
        accounts
            .asked
            .insert(owner.clone(), request.into_iter().collect());
        let (ctx, book) = (self.ctx.clone(), self.wiring.users.clone());
        let workspaces = self.context.workspaces.clone();
        let doing = async move {
            let said = job.run(&ctx, &book, &workspaces, &owner).await;
            ctx.notify(SandboxPoolMsg::User(owner, job, said));
        };
        self.ctx.task("user", 0, doing).keep();
    }

    /// It was done, or not.
    pub(super) async fn settled(
        &mut self,
        owner: Owner,
        job: Job,
        said: Said,
    ) -> Result<(), Crash> {
        let Some(accounts) = &mut self.accounts else {
            return Ok(());
        };
        let waiting = accounts.asked.remove(&owner).unwrap_or_default();
        let refusal = match said.given {
            Ok(revisions) => {
                let mut revisions = revisions.into_iter();
                for uid in job.writes() {
                    let rev = revisions.next();
                    let rev = rev.ok_or_else(|| Crash::new("a row has no revision"))?;
                    accounts.revisions.insert(uid, rev.0);
                }
                let seen = accounts.settled.entry(owner.clone()).or_default();
                *seen |= said.folder.is_ok() && job.folder != Folder::Unseen;
                said.folder.err()
            }
            Err(error) if error.must_reread() => {
                return Err(Crash::new(format!("the user of {owner}: {error}")));
            }
            Err(error) => {
                // It was written nowhere: whoever is next may have it.
                let had = job.had.map(|(had, _)| had);
                accounts.users.take_back(&owner, job.uid, had);
                let code = codes::find(error.code()).unwrap_or(codes::CANNOT_RECORD);
                Some(PoolError::NotKept(code, error.to_string()))
            }
        };
        if let Some(refusal) = refusal {
            tracing::warn!(%owner, %refusal, "its boxes have no user");
            for request in waiting {
                self.refuse(request, refusal.clone());
            }
            return Ok(());
        }
        for request in waiting {
            self.request(request).await?;
        }
        self.review().await
    }

    /// Its folder is another's: it is looked at anew before the next run.
    pub(super) fn look_again(&mut self, owner: &Owner) {
        if let Some(accounts) = &mut self.accounts {
            accounts.settled.remove(owner);
        }
    }
}

impl Job {
    /// The numbers whose rows it writes.
    fn writes(self) -> impl Iterator<Item = u32> {
        let new = self.is_new.then_some(self.uid);
        new.into_iter().chain(self.had.map(|(had, _)| had))
    }

    async fn run(
        self,
        ctx: &Ctx<SandboxPool>,
        book: &UserBook,
        workspaces: &Path,
        owner: &Owner,
    ) -> Said {
        let given = if self.is_new {
            self.give(book, owner).await
        } else {
            Ok(Vec::new())
        };
        let folder = match self.folder {
            Folder::Of(from) if given.is_ok() => {
                self.take_over(ctx, book, workspaces, owner, from).await
            }
            _ => Ok(()),
        };
        Said { given, folder }
    }

    async fn give(self, book: &UserBook, owner: &Owner) -> Result<Vec<Revision>, ActError> {
        let ops = |intent| {
            let payload = |row: &UserRow| serde_json::to_vec(row).map_err(|_| "a row of a user");
            let row = UserRow::of(owner);
            let new = Op::create(KIND, &self.uid.to_string(), intent, payload(&row)?);
            let past = match self.had {
                Some((had, rev)) => {
                    let (id, row) = (had.to_string(), payload(&row.past())?);
                    Some(Op::compare_and_set(KIND, &id, intent, rev, row))
                }
                None => None,
            };
            Ok(std::iter::once(new).chain(past).collect())
        };
        match &book.record {
            Record::Log(audit) => {
                let entry = entry("sandbox.user", owner).with("uid", self.uid.to_string());
                let entry = match self.had {
                    Some((had, _)) => entry.with("had", had.to_string()),
                    None => entry,
                };
                let done = act(audit, &book.store, entry, ops).await?;
                Ok(done.revisions)
            }
            #[cfg(test)]
            Record::Nowhere => crate::act::store_with(&book.store, 0, ops).await,
        }
    }

    async fn take_over(
        self,
        ctx: &Ctx<SandboxPool>,
        book: &UserBook,
        workspaces: &Path,
        owner: &Owner,
        from: u32,
    ) -> Result<(), PoolError> {
        let cannot = |why: String| {
            let folder = owner.folder();
            let why = format!(
                "workspaces/{folder} belongs to uid {from} and cannot be given to {}: {why}",
                self.uid
            );
            PoolError::Workspace(why)
        };
        let intent = match &book.record {
            Record::Log(audit) => {
                let entry = entry("sandbox.reown", owner);
                let entry = entry
                    .with("from", from.to_string())
                    .with("uid", self.uid.to_string());
                let intent = audit
                    .intent(entry)
                    .await
                    .map_err(|error| cannot(error.to_string()))?;
                Some((audit, intent))
            }
            #[cfg(test)]
            Record::Nowhere => None,
        };
        let taken = over(ctx, workspaces, owner.folder(), from, self.uid).await;
        if let Some((audit, intent)) = intent {
            let outcome = match &taken {
                Ok(taken) => Outcome::ok()
                    .with("entries", taken.entries.to_string())
                    .with("left", taken.left.to_string()),
                Err(_) => Outcome::failed(codes::WORKSPACE_FOREIGN.name),
            };
            if let Err(error) = audit.outcome(intent, outcome).await {
                tracing::error!(%owner, %error, "an outcome could not be recorded");
            }
        }
        let taken = taken.map_err(cannot)?;
        tracing::info!(%owner, from, uid = self.uid, ?taken, "a workspace has its agent's own user now");
        Ok(())
    }
}

fn entry(action: &str, owner: &Owner) -> Entry {
    Entry {
        object: Some(owner.to_string()),
        door: Some("sandbox".to_owned()),
        ..Entry::new(action)
    }
}

/// Beside the loop, when the room has a thread to give.
async fn over(
    ctx: &Ctx<SandboxPool>,
    workspaces: &Path,
    folder: String,
    from: u32,
    to: u32,
) -> Result<Taken, String> {
    loop {
        let (done, came) = oneshot::channel();
        let (workspaces, folder) = (workspaces.to_owned(), folder.clone());
        let job = move || {
            let taken = reown::take_over(&workspaces, &folder, from, to);
            let _ = done.send(taken.map_err(|error| error.to_string()));
        };
        if ctx.blocking("reown", 0, job).is_ok() {
            return came
                .await
                .unwrap_or_else(|_| Err("it was broken off".to_owned()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
