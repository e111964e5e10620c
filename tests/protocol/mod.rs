//! The wire, spoken to the real program: what each frame gets (wire.md; SECURITY.md).

mod after;
mod agents;
mod before;
mod changed;
mod credentials;
mod devices;
mod encodings;
mod exec;
mod exec_input;
mod far;
mod hello;
mod http;
mod kin;
mod life;
mod limits;
mod local;
mod passwords;
mod proofs;
mod proxies;
mod revocation;
mod rfc6455;
mod secrets;
mod setup_codes;
mod signed_frames;
pub mod signed_http;
mod tls;
mod users;
