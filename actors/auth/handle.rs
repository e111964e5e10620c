//! The way to authentication.

use std::time::Duration;

use portcullis_core::auth::password;
use portcullis_core::auth::{Principal, SecretName};
use portcullis_core::codes;
use portcullis_core::ids::AgentId;
use portcullis_core::protocol::ConnectRefusal;
use portcullis_core::token::{Token, TokenKind};

use super::actor::{Auth, AuthWiring};
use super::messages::{
    Admitted, Arrival, AuthMsg, AuthNews, AuthRefusal, Change, Listed, Made, NewPassword,
};
use crate::act::entry_of;
use crate::supervision::{CallError, Feed, FeedReader, Handle, Policy, Reply, TreeBuilder};

/// For one connect; the socket itself has 15 s.
const WITHIN: Duration = Duration::from_secs(10);

/// Clone it freely; it survives restarts of the room.
#[derive(Clone)]
pub struct AuthHandle {
    room: Handle<AuthMsg>,
    news: Feed<AuthNews>,
}

impl AuthHandle {
    /// Adds the room to a tree.
    pub fn add(tree: &mut TreeBuilder, wiring: AuthWiring) -> Self {
        let policy = Policy::new(wiring.config.concurrent.max(1));
        let news = wiring.news.clone();
        let room = tree.room::<Auth>(policy, wiring);
        Self { room, news }
    }

    /// For tests of rooms that only ask whether a secret holds.
    #[cfg(test)]
    pub fn bare(
        tree: &mut TreeBuilder,
        store: &crate::store::Store,
        audit: &crate::audit::AuditHandle,
        pairing: &crate::pairing::PairingHandle,
    ) -> Self {
        let hash = portcullis_core::token::TokenHash::of("tests");
        let none = portcullis_core::auth::ScopeSet::empty;
        let wiring = AuthWiring {
            config: super::AuthConfig::default(),
            modes: super::Modes::default(),
            bcrypt_cost: 4,
            pepper: portcullis_core::seal::Secret::new(vec![1; 32]),
            token: super::SharedSecret::Given(portcullis_core::auth::secret::SharedHash::Random(
                hash,
            )),
            proxy_users: std::sync::Arc::new([]),
            shared_token_scopes: none(),
            local_trust: false,
            local_scopes: none(),
            pairing: pairing.clone(),
            store: store.clone(),
            news: Feed::new(),
            audit: audit.clone(),
            clock: crate::clock::Clock::system(),
        };
        Self::add(tree, wiring)
    }

    /// Secrets that are changed from now on.
    pub fn news(&self) -> FeedReader<AuthNews> {
        self.news.subscribe()
    }

    /// Decides on a `connect`.
    ///
    /// # Errors
    /// The refusal to answer with, before the socket is closed.
    pub async fn connect(&self, arrival: Arrival) -> Result<Admitted, ConnectRefusal> {
        let arrival = Box::new(arrival);
        self.room
            .call(WITHIN, |reply| AuthMsg::Connect(arrival, reply))
            .await
            .map_err(|error| match error {
                CallError::Refused(refusal) => refusal,
                CallError::Overloaded => ConnectRefusal::unavailable(
                    codes::OVERLOADED,
                    "too many are connecting: try again",
                ),
                CallError::Unavailable { .. } | CallError::Deadline { .. } => {
                    ConnectRefusal::unavailable(
                        codes::ROOM_DOWN,
                        "authentication does not answer: try again",
                    )
                }
            })
    }

    /// Does the secret behind a session still open the door? Asked after the session stands on the edge's list, so that
    /// one which was let in while its secret changed is found.
    ///
    /// # Errors
    /// [`AuthRefusal`]: nobody knows, so it does not.
    pub async fn holds(&self, principal: &Principal) -> Result<bool, AuthRefusal> {
        let principal = Box::new(principal.clone());
        self.ask(|reply| AuthMsg::Holds(principal, reply)).await
    }

    /// The generation of a secret that is in force; `None`: there is no such secret.
    ///
    /// # Errors
    /// [`AuthRefusal`]: nobody knows.
    pub async fn current_generation(
        &self,
        secret: &SecretName,
    ) -> Result<Option<u64>, AuthRefusal> {
        let secret = secret.clone();
        self.ask(|reply| AuthMsg::Lives(secret, reply)).await
    }

    /// Makes a new shared token; the old one opens nothing from here on.
    ///
    /// # Errors
    /// [`AuthRefusal`].
    pub async fn rotate(&self, by: &Principal) -> Result<Made, AuthRefusal> {
        let token = fresh(TokenKind::Gateway)?;
        self.change(by, Change::RotateShared(token)).await
    }

    /// Makes a token for one agent; one that it had before opens nothing from here on.
    ///
    /// # Errors
    /// [`AuthRefusal`].
    pub async fn mint(&self, by: &Principal, agent: &AgentId) -> Result<Made, AuthRefusal> {
        let token = fresh(TokenKind::Agent)?;
        self.change(by, Change::MintAgent(agent.clone(), token))
            .await
    }

    /// Takes an agent's token back.
    ///
    /// # Errors
    /// [`AuthRefusal`].
    pub async fn revoke(&self, by: &Principal, agent: &AgentId) -> Result<Made, AuthRefusal> {
        self.change(by, Change::RevokeAgent(agent.clone())).await
    }

    /// Agents that have a token.
    ///
    /// # Errors
    /// [`AuthRefusal`].
    pub async fn agents(&self) -> Result<Vec<Listed>, AuthRefusal> {
        self.ask(AuthMsg::Agents).await
    }

    /// Keeps a password under a name.
    ///
    /// # Errors
    /// [`AuthRefusal`].
    pub async fn set_password(
        &self,
        by: &Principal,
        name: &str,
        password: NewPassword,
    ) -> Result<Made, AuthRefusal> {
        let name = checked(name)?;
        match password {
            NewPassword::Hash(hash) => self.change(by, Change::KeepPassword(name, hash)).await,
            NewPassword::Plain(secret) => {
                let unfit = AuthRefusal::Unfit(password::PasswordError::Unfit);
                let text = std::str::from_utf8(secret.expose()).map_err(|_| unfit)?;
                password::check(text).map_err(AuthRefusal::Unfit)?;
                let entry = Box::new(entry_of(by));
                self.ask(|reply| AuthMsg::SetPassword(entry, name, secret, reply))
                    .await
            }
        }
    }

    /// Forgets a password.
    ///
    /// # Errors
    /// [`AuthRefusal`].
    pub async fn remove_password(&self, by: &Principal, name: &str) -> Result<Made, AuthRefusal> {
        let name = checked(name)?;
        self.change(by, Change::RemovePassword(name)).await
    }

    /// Names that have a password.
    ///
    /// # Errors
    /// [`AuthRefusal`].
    pub async fn passwords(&self) -> Result<Vec<Listed>, AuthRefusal> {
        self.ask(AuthMsg::Passwords).await
    }

    async fn change(&self, by: &Principal, change: Change) -> Result<Made, AuthRefusal> {
        let entry = Box::new(entry_of(by));
        self.ask(|reply| AuthMsg::Change(entry, change, reply))
            .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(Reply<T, AuthRefusal>) -> AuthMsg,
    ) -> Result<T, AuthRefusal> {
        Ok(self.room.call(WITHIN, ask).await?)
    }
}

fn checked(name: &str) -> Result<String, AuthRefusal> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(AuthRefusal::Name);
    }
    Ok(name.to_owned())
}

fn fresh(kind: TokenKind) -> Result<Token, AuthRefusal> {
    let mut random = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut *random).map_err(|_| AuthRefusal::Broken)?;
    Ok(Token::from_random(kind, &random))
}
