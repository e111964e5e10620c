//! The peer's own command line, `openclaw` from npm, unmodified, against the real gateway.

use crate::support::gateway::Gateway;
use crate::support::npm::Npm;

#[test]
fn the_unmodified_command_line_calls_health() {
    let Some(npm) = Npm::find() else { return };
    let gateway = Gateway::start();
    let health = npm.json(&gateway, &["gateway", "call", "health"]);
    assert_eq!(health["ok"], true, "{health}");
}
