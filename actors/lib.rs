//! The supervised concerns of Portcullis, one folder each.
//!
//! | room | owns |
//! |---|---|
//! | `audit/` | the tamper-evident log, its writer thread, open intents, idempotency keys |
//! | `nodes/` | connected node hosts, what each may be asked, open questions to them |
//! | `pairing/` | devices, their roles and tokens |
//! | `store/` | `state.db`: conditional writes, its own threads |
//! | `sandbox_pool/` | the sandbox driver, boxes of agents, sessions and shares, the workspaces |
//! | `approval/` | questions to a person, standing grants, the approvals document |
//! | `auth/` | every way in: one principal or a refusal |
//! | `connection/` | one socket: handshake, requests, events |
//! | `dashboard/` | one-time codes and sessions of the page |
//! | `exec/` | runs: plans, intents, processes |
//! | `notices/` | what receivers outside are told of questions: a webhook, a program |
//! | `pairing/` | devices, their roles and tokens |
//! | `sandbox_pool/` | the sandbox driver, boxes of agents, sessions and shares, the workspaces |
//! | `sinks/` | a child for each other system that gets the log's records, and how far each has come |
//! | `signing/` | keys of signed HTTP requests, and the nonces that were used |
//! | `store/` | `state.db`: conditional writes, its own threads |
//! | `supervision/` | the machinery: tree, places, gates, tasks, feeds |
//! | `vault/` | named secrets, sealed |
#![forbid(unsafe_code)]

pub mod act;
pub mod approval;
pub mod audit;
pub mod auth;
pub mod clock;
pub mod connection;
pub mod dashboard;
pub mod exec;
pub mod nodes;
pub mod notices;
pub mod pairing;
pub mod plain;
pub mod plugins;
pub mod sandbox_pool;
pub mod signing;
pub mod sinks;
pub mod store;
pub mod supervision;
pub mod vault;
