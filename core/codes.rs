//! The registry of Portcullis' own error codes: one place, one meaning, one next step each.
//!
//! On the wire `error.code` is one of the peer's closed set (wire.md section 3); ours is `details.code`.

/// One code.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// The stable name, in `details.code`, on stderr and in `--json`.
    pub name: &'static str,
    /// `error.code` on the wire.
    pub wire: &'static str,
    /// May the same request be sent again?
    pub retryable: bool,
    /// Exit code of a CLI command that ends with it (`exec` always ends with 125).
    pub exit: u8,
    /// What to do next.
    pub next: &'static str,
}

macro_rules! codes {
    ($($name:ident, $wire:literal, $retry:literal, $exit:literal, $next:literal;)*) => {
        $(
            #[doc = $next]
            pub const $name: &Code = &Code {
                name: stringify!($name), wire: $wire, retryable: $retry, exit: $exit, next: $next,
            };
        )*
        /// Every code.
        pub const ALL: &[&Code] = &[$($name),*];
    };
}

codes! {
    OVERLOADED, "UNAVAILABLE", true, 1, "wait a moment and send the request again";
    ROOM_DOWN, "UNAVAILABLE", true, 8, "`portcullis status` shows which room is down and why";
    DEADLINE, "UNAVAILABLE", true, 6, "look at details.execution before sending it again";
    SEALED, "UNAVAILABLE", false, 4, "the vault is sealed: `portcullis status` says why";
    UNSEALING, "UNAVAILABLE", true, 6, "the vault is being unlocked: send the request again in a second";
    CANNOT_RECORD, "UNAVAILABLE", true, 8, "the audit log cannot be written: free disk space or mend the disk, nothing was done";
    DISK_FULL, "UNAVAILABLE", true, 8, "free disk space under the state directory, nothing was done";
    NO_DRIVER, "UNAVAILABLE", false, 8, "`portcullis status` shows what each driver lacks and the command that mends it";
    BOX_LOST, "UNAVAILABLE", true, 8, "the sandbox ended under the run: look at the engine, then run again";
    ISOLATION_TOO_WEAK, "UNAVAILABLE", false, 8, "`portcullis sandbox explain --agent NAME` shows what is asked and what there is: start a Docker engine, or lower min_isolation where it is decided, then restart the gateway";
    IMAGE_UNUSABLE, "UNAVAILABLE", false, 8, "an image must be in the local Docker engine (`docker images` shows it; none is fetched) and bring no volume and no health check: mend that, or set another in [sandbox] image and restart the gateway";
    BOX_NOT_FOUND, "INVALID_REQUEST", false, 3, "`portcullis sandbox list` shows those that there are";
    RUNTIME_UNUSABLE, "UNAVAILABLE", false, 8, "`docker info` lists the engine's runtimes, and the native driver has none: set another in [sandbox] runtime (or the agent's), or add that one to the engine and restart the gateway";
    MOUNT_REFUSED, "UNAVAILABLE", false, 8, "what a box sees of this machine is checked at each run: mend what the message names, or take the entry out of [sandbox] mounts (or the agent's) and restart the gateway";
    UIDS_EXHAUSTED, "UNAVAILABLE", false, 8, "name more users in [sandbox] uids, FIRST-LAST, and restart the gateway: those that agents have stay theirs";
    WORKSPACE_FOREIGN, "UNAVAILABLE", false, 8, "find out how it came there (`ls -ldn STATE/workspaces/*`): move it away, or, where its files are this agent's, give it to root with `chown -hR 0:0` and to the agent's uid, which `portcullis sandbox explain --agent NAME` shows, then run again";
    WORKSPACE_FULL, "UNAVAILABLE", true, 8, "make room: the next run can delete (`portcullis exec --agent NAME -- rm -rf target`), though it can write no file; where none is started, files of STATE/workspaces are deleted by hand. `portcullis sandbox explain --agent NAME` shows what is held; more room is workspace_bytes or workspace_files in [sandbox] (or the agent's), and a restart of the gateway";
    NOT_CONTAINED, "UNAVAILABLE", false, 9, "let no agent run until each attempt of `portcullis sandbox selftest` is contained: `portcullis sandbox explain` shows driver, isolation and limits; where they are as they should be, report it";
    IMAGE_BUILD, "UNAVAILABLE", false, 8, "nothing was changed but what it says: mend that and run the command again";
    IMAGE_ALTERED, "UNAVAILABLE", false, 10, "what the engine has under this id was changed on its disk: make the image anew, and find out who writes there";
    ENV_NOT_ALLOWED, "FORBIDDEN", false, 5, "leave the variable out, or add its name to env in [sandbox] or [agents.NAME.sandbox] and restart the gateway: `portcullis sandbox explain --agent NAME` shows the list";
    PLAN_CHANGED, "INVALID_REQUEST", false, 5, "what was approved is not what would run any more: ask again";
    ELEVATED_DISABLED, "FORBIDDEN", false, 5, "elevated mode is off for this agent: add the lines given here to config.toml (details.fix on the wire), then restart the gateway";
    NODES_DISABLED, "FORBIDDEN", false, 5, "commands of this agent may not go to node hosts: add the lines given here to config.toml (details.fix on the wire), then restart the gateway";
    POLICY_DENIED, "FORBIDDEN", false, 5, "a policy refuses this command for this agent: `portcullis approvals policy` shows it";
    APPROVAL_DENIED, "FORBIDDEN", false, 5, "the message says who refused it or why it was withdrawn: change the command or ask that person, then ask again under a new key";
    APPROVAL_EXPIRED, "UNAVAILABLE", false, 6, "nobody decided in time, which means no: ask again when somebody watches `portcullis approvals watch`";
    APPROVAL_NOT_FOUND, "INVALID_REQUEST", false, 3, "`portcullis approvals list` shows what is pending";
    APPROVAL_ALREADY_RESOLVED, "INVALID_REQUEST", false, 5, "the first answer stands; `portcullis approvals list` shows what is pending";
    APPROVAL_SELF, "FORBIDDEN", false, 4, "who asked cannot approve: let another operator decide";
    EXEC_APPROVAL_COMMAND_DISPLAY_LIMIT, "INVALID_REQUEST", false, 2, "put what is long into a file, and name that";
    APPROVAL_PROOF_REQUIRED, "FORBIDDEN", false, 4, "decide with `portcullis approvals allow ID`, which signs with a paired key; or take the act out of [approval] require_proof and restart the gateway";
    APPROVAL_PROOF_INVALID, "FORBIDDEN", false, 4, "sign exactly this approval, plan, decision, scope and expiry with the key of a device that is paired as an operator and may decide: ARCHITECTURE.md has the bytes";
    APPROVAL_SAME_VOTER, "FORBIDDEN", false, 4, "let somebody with another paired key decide: `portcullis approvals show ID` says who has";
    CHANGE_WAITS, "FORBIDDEN", false, 5, "an operator answers it, not on the connection that asked: `portcullis approvals show ID`, then `portcullis approvals allow ID`; then it holds";
    POLICY_CONFLICT, "INVALID_REQUEST", true, 1, "the document changed since it was read: read it again and retry";
    INVALID_PARAMS, "INVALID_REQUEST", false, 2, "the message names the field";
    CONNECT_INVALID, "INVALID_REQUEST", false, 2, "the message names what is wrong in `connect`: mend it and dial again";
    INVALID_FRAME, "INVALID_REQUEST", false, 2, "send one JSON object {type:\"req\", id, method, params} per text frame";
    UNKNOWN_METHOD, "INVALID_REQUEST", false, 2, "hello-ok lists the methods";
    MISSING_SCOPE, "FORBIDDEN", false, 4, "connect with the scope in details.missingScope";
    WRONG_ROLE, "INVALID_REQUEST", false, 4, "connect with the role that the method is for";
    TOO_MANY_IN_FLIGHT, "UNAVAILABLE", true, 1, "wait for answers: a connection may have 32 requests under way";
    NODE_REPEATED, "INVALID_REQUEST", false, 8, "the node is not asked again under this key: the log has what became of it (`portcullis audit query`); a new key asks once more";
    DUPLICATE_ID, "INVALID_REQUEST", false, 2, "use a new id for each request under way on a connection";
    SIGNATURE_REQUIRED, "FORBIDDEN", false, 4, "sign the request: SECURITY.md has the profile, and a device gets its key with its hello";
    SIGNATURE_INVALID, "FORBIDDEN", false, 4, "sign exactly what is sent, with the key of a device that is still paired";
    SIGNATURE_STALE, "FORBIDDEN", true, 1, "set the clock right and sign the request anew";
    SIGNATURE_REPLAYED, "FORBIDDEN", false, 5, "it was taken already: a new request needs a new nonce";
    PROXY_ATTRIBUTION_REQUIRED, "FORBIDDEN", false, 4, "name the proxy's address in [gateway.auth.trusted_proxy] addresses, or let it add no Forwarded, X-Forwarded-* and X-Real-IP header";
    TLS_OFF, "INVALID_REQUEST", false, 3, "set [gateway.tls] enabled = true and restart the gateway";
    CERTIFICATE_INVALID, "UNAVAILABLE", false, 1, "the old certificate is still served: mend the file that is named, then `portcullis tls reload`";
    NEEDS_SOCKET, "INVALID_REQUEST", false, 2, "ask for it on a WebSocket connection: it streams, or waits for a person";
    SESSION_ENDED, "UNAVAILABLE", false, 4, "the credential of this connection was changed or revoked: connect again";
    AGENT_REQUIRED, "INVALID_REQUEST", false, 2, "name the agent: `--agent NAME`";
    AGENT_NOT_ALLOWED, "FORBIDDEN", false, 4, "an operator acts for an agent only with the scope operator.act_as";
    COMMAND_NOT_FOUND, "INVALID_REQUEST", false, 3, "give the command's full path, or a name in /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    PLUGIN_NOT_FOUND, "UNAVAILABLE", false, 8, "the gateway starts only programs that [plugins] names: put the file there, or mend the path and restart the gateway";
    PLUGIN_UNSAFE, "UNAVAILABLE", false, 8, "the message says who could change the program: let root or the gateway's user own it and the folders above it and nobody else write them, and name the file itself, no link";
    PLUGIN_CHANGED, "UNAVAILABLE", false, 8, "the program is not the one that was named: find out who changed it; if you did, write its new digest (`sha256sum FILE`) into [plugins] and restart the gateway";
    HOST_USER_INVALID, "UNAVAILABLE", false, 8, "a gateway that is root: set [exec.host] user to an existing user that is neither root nor an operator; any other: install bubblewrap";
    KEY_USED, "INVALID_REQUEST", false, 5, "the message says what became of the run that has this key: it is not run again; to run it once more use a new key";
    RUN_NOT_FOUND, "INVALID_REQUEST", false, 3, "the run has ended or is not yours";
    RUN_NOT_BEGUN, "UNAVAILABLE", true, 1, "the command has not begun: wait for its exec.begun event";
    STDIN_FULL, "UNAVAILABLE", true, 1, "the command has not read what it was sent: send the rest later, from details.offset on";
    STDIN_GAP, "INVALID_REQUEST", false, 2, "send what begins at details.offset";
    STDIN_CLOSED, "INVALID_REQUEST", false, 5, "begin the run with stdin \"open\", and send nothing after eof";
    INPUT_UNAVAILABLE, "INVALID_REQUEST", false, 5, "standard input, terminals and signals are for commands in the sandbox: run it there";
    TTY_UNAVAILABLE, "UNAVAILABLE", false, 8, "the message says why there is no terminal: run it without one";
    RUN_CANCELLED, "UNAVAILABLE", false, 1, "run it again where it should go on";
    RUN_READ_ELSEWHERE, "UNAVAILABLE", false, 1, "a detached run has one reader, the last that came: `portcullis attach RUN` reads it here again";
    RUN_UNKNOWN, "UNAVAILABLE", false, 8, "whether this run finished is unknown, so it is not run again: look at what it should have done, and use a new key to run it once more";
    TOO_MANY_RUNS, "UNAVAILABLE", true, 1, "wait for a run of this agent to end";
    FILE_NOT_FOUND, "INVALID_REQUEST", false, 3, "look at the path: in the sandbox a relative one is below /workspace, and no folder is made";
    FILE_UNFIT, "INVALID_REQUEST", false, 5, "plain files are copied: for a folder, `portcullis exec -i --agent NAME -- tar -x < FILE` and `portcullis exec --agent NAME -- tar -c FOLDER`";
    FILE_EXISTS, "INVALID_REQUEST", false, 5, "nothing was changed: --force replaces it";
    FILE_TOO_LARGE, "INVALID_REQUEST", false, 5, "nothing was copied: split it, or pipe it through `portcullis exec -i`";
    FILE_CHANGED, "UNAVAILABLE", true, 1, "nothing was kept: copy it again when nothing writes to it";
    FILE_NO_ROOM, "UNAVAILABLE", true, 8, "nothing was kept: free room where it should go";
    FILE_NOT_PERMITTED, "FORBIDDEN", false, 4, "nothing was changed: the sandbox's user may not, or it is read-only there (`portcullis sandbox explain --agent NAME`)";
    FILE_NOT_COPIED, "UNAVAILABLE", false, 1, "nothing was kept: the message is the sandbox's own";
    DEVICE_NOT_FOUND, "INVALID_REQUEST", false, 3, "`portcullis devices list` shows the devices";
    REQUEST_NOT_FOUND, "INVALID_REQUEST", false, 3, "the request was decided or has expired; `portcullis devices list` shows what is pending";
    PAIRING_DENIED, "INVALID_REQUEST", false, 4, "let an operator decide who holds the scopes that the device asks for, and is not that device";
    TOO_MANY_PENDING, "UNAVAILABLE", true, 1, "decide on the pending requests first: `portcullis devices list`";
    ASKS_TOO_OFTEN, "UNAVAILABLE", true, 1, "let the device ask for the same thing each time, or wait a minute: every new question is recorded and shown to a person";
    NODE_NOT_FOUND, "INVALID_REQUEST", false, 3, "`portcullis nodes list` shows the nodes";
    NOT_CONNECTED, "UNAVAILABLE", false, 3, "start the node host on that machine: `portcullis node run`; nothing was sent";
    NODE_COMMAND_NOT_ALLOWED, "INVALID_REQUEST", false, 5, "the node must declare the command, a person must approve it, and the gateway must have it on its list";
    NODE_ID_MISMATCH, "INVALID_REQUEST", false, 4, "a node answers for itself only";
    NODE_ERROR, "UNAVAILABLE", false, 8, "details.nodeError is the node's own word, or says that it did not answer; look at details.nodeCommandDispatched before sending it again";
    MISSING_RUN_ID, "INVALID_REQUEST", false, 2, "send the approval's id as runId";
    UNKNOWN_APPROVAL_ID, "INVALID_REQUEST", false, 3, "ask first with exec.approval.request, and wait for the answer";
    APPROVAL_REQUIRED, "INVALID_REQUEST", false, 5, "ask first with exec.approval.request; each answer is good once";
    APPROVAL_PLAN_REQUIRED, "INVALID_REQUEST", false, 5, "the node must offer system.run.prepare, approved by a person: without a plan nobody knows what would run";
    APPROVAL_NODE_MISMATCH, "INVALID_REQUEST", false, 5, "this approval is for another node";
    APPROVAL_NODE_BINDING_MISSING, "INVALID_REQUEST", false, 5, "this approval is for no node";
    APPROVAL_DEVICE_MISMATCH, "INVALID_REQUEST", false, 4, "the device that asked uses the answer";
    APPROVAL_CLIENT_MISMATCH, "INVALID_REQUEST", false, 4, "the connection that asked uses the answer";
    APPROVAL_REQUEST_MISMATCH, "INVALID_REQUEST", false, 5, "send exactly what was approved, or ask for the new command";
    VAULT_NAME_INVALID, "INVALID_REQUEST", false, 2, "a secret's name is A-Z, then A-Z, 0-9 or _, at most 128 characters";
    VAULT_VALUE_INVALID, "INVALID_REQUEST", false, 2, "a secret is 1 byte to 64 KiB";
    VAULT_NOT_FOUND, "INVALID_REQUEST", false, 3, "`portcullis vault list` shows the names";
    VAULT_RECORD_CORRUPT, "UNAVAILABLE", false, 10, "this record was altered on disk: set it again, and look at `portcullis audit verify`";
    VAULT_RECORD_OLD, "UNAVAILABLE", false, 10, "an older value was put back on disk: set it again, and find out who wrote to the state directory";
    VAULT_RECORD_MISSING, "UNAVAILABLE", false, 10, "this record was taken away on disk: set it again or remove its name, and find out who wrote to the state directory";
    VAULT_ROLLED_BACK, "UNAVAILABLE", false, 10, "another vault than the newest lies on disk: restore state.db, audit and keys from one backup";
    VAULT_MISSING, "UNAVAILABLE", false, 10, "the vault was taken away on disk: restore state.db, audit and keys from one backup";
    VAULT_LOCKED, "UNAVAILABLE", false, 4, "a person opens it: `portcullis vault unlock`";
    VAULT_IS_OPEN, "INVALID_REQUEST", false, 1, "nothing is to be done; `portcullis vault seal` closes it";
    VAULT_OTHER_MACHINE, "UNAVAILABLE", false, 4, "open it with a passphrase or recovery code (`portcullis vault unlock`), or name a file with that machine's id in [vault] machine_id_file";
    VAULT_UNLOCK_WRONG, "FORBIDDEN", false, 4, "look at what was typed; `portcullis vault unlockers list` shows what opens it";
    VAULT_UNLOCK_LIMITED, "UNAVAILABLE", true, 4, "too many wrong tries: wait the time that is named, or open it by another kind of unlocker";
    VAULT_RECOVERY_INVALID, "INVALID_REQUEST", false, 2, "type the code again, all nine groups of it: its check characters do not fit";
    VAULT_UNLOCKER_WEAK, "INVALID_REQUEST", false, 2, "give a passphrase of 12 characters or more, or a key file of 32 bytes or more";
    VAULT_KEY_FILE, "UNAVAILABLE", false, 4, "the key file must be a plain file of 0600 outside the state directory, a credential one of $CREDENTIALS_DIRECTORY";
    VAULT_UNLOCKER_NOT_FOUND, "INVALID_REQUEST", false, 3, "`portcullis vault unlockers list` shows their ids";
    VAULT_NOT_BOUND, "FORBIDDEN", false, 5, "an operator binds the secret to the agent, or to the host that the gateway sends it to: `portcullis vault bind NAME --agent AGENT` or `--host HOST`";
    SECRET_NOT_FOR_NODES, "INVALID_REQUEST", false, 5, "run it in the sandbox or on the host, or give that machine a secret of its own";
    VAULT_EXPORT_INVALID, "INVALID_REQUEST", false, 2, "name a file that `portcullis vault export` wrote";
    VAULT_EXPORT_TOO_LARGE, "INVALID_REQUEST", false, 5, "an export holds 8 MiB: remove what is not needed any more";
    VAULT_EXISTS, "INVALID_REQUEST", false, 5, "nothing was imported: `portcullis vault import --replace` overwrites what is there";
    VAULT_NEEDS_PERSON, "INVALID_REQUEST", false, 5, "run it at a terminal, with --i-understand";
    VAULT_PASSPHRASE_NEEDED, "INVALID_REQUEST", false, 2, "type the passphrase of each such unlocker, or drop it: `portcullis vault rekey --drop ID`";
    VAULT_LAST_UNLOCKER, "INVALID_REQUEST", false, 5, "add another unlocker first: without one the vault would never open again";
    IDENTITY_MISMATCH, "UNAVAILABLE", false, 4, "the identity key is not the one that this state was made with: point --identity at the right file";
    SECRET_IN_CONFIG, "UNAVAILABLE", false, 2, "put it into the vault (`portcullis vault set NAME < file`) and write { vault = \"NAME\" } in its place; it was readable, so change it where it came from too";
    CONFIG_INVALID, "UNAVAILABLE", false, 2, "mend the lines named, then start again";
    STATE_MODE, "UNAVAILABLE", false, 4, "others can reach this file, or it is none: the message says what mends it";
    STATE_LOCKED, "UNAVAILABLE", false, 1, "another gateway uses this state directory: stop it, or choose another with --state";
    STATE_CORRUPT, "UNAVAILABLE", false, 10, "the state does not fit the audit log: look at `portcullis audit verify --offline` and restore state.db, audit and keys from one backup";
    STATE_ROW_ALTERED, "UNAVAILABLE", false, 10, "a row of the state database was altered or is none of ours: stop the gateway, restore state.db, audit and keys from one backup, and look at `portcullis audit verify --offline`";
    AUDIT_ALTERED, "UNAVAILABLE", false, 10, "the audit log was altered: keep a copy as evidence; `portcullis audit verify --offline` names the first bad record";
    AUDIT_KEY_MISMATCH, "UNAVAILABLE", false, 10, "the audit log and the key that signs it do not belong together, as when one of them was put back: restore STATE/audit and STATE/keys from one backup";
    STATE_FORMAT, "UNAVAILABLE", false, 1, "the state was made by another version of Portcullis: run the build that wrote it";
    STATE_IO, "UNAVAILABLE", true, 8, "the state database could not be read or written: look at the disk and the system log";
    STORE_DOWN, "UNAVAILABLE", true, 8, "the state database has stopped and the gateway ends with it: its service starts it again";
    STORE_INVALID, "UNAVAILABLE", false, 1, "this is a defect of ours: the state database refused what a room wanted to write";
    AUDIT_NOT_OPEN, "UNAVAILABLE", false, 1, "this act was closed in the audit log before: `portcullis audit query` shows it";
    AUDIT_UNREADABLE, "UNAVAILABLE", true, 8, "the audit log could not be read: look at the disk and at the rights of the state directory";
    AUDIT_FORKED, "UNAVAILABLE", false, 10, "the gateway's audit log does not go on from what this user has seen of it: verify it against the checkpoint that is named, before you trust it";
    AUDIT_NOT_COMPARED, "UNAVAILABLE", true, 10, "the gateway did not tell what its audit log is now: `portcullis audit verify` asks again";
    AUDIT_NO_RECORD, "INVALID_REQUEST", false, 3, "`portcullis audit tail` shows the newest records and their numbers";
    AUDIT_ENTRY_INVALID, "INVALID_REQUEST", false, 2, "a name or a value is longer than the audit log takes: shorten it, nothing was done";
    BOX_START_FAILED, "UNAVAILABLE", true, 8, "the sandbox could not be started: look at the gateway's log and the engine, then try again";
    BOX_STATE_UNKNOWN, "UNAVAILABLE", true, 8, "a sandbox could not be ended or listed: look at the engine; the next start of the gateway ends what is left";
    IDENTITY_INVALID, "UNAVAILABLE", false, 4, "the identity key must be a file of 0600 outside the state directory";
    PORT_IN_USE, "UNAVAILABLE", false, 1, "another program listens there: choose another with --port";
    DAEMON_UNREACHABLE, "UNAVAILABLE", true, 7, "start it: `portcullis gateway`";
    SERVER_NOT_VERIFIED, "UNAVAILABLE", false, 4, "nothing was sent to it: compare --pin with what `portcullis status` of that gateway shows; without a pin its certificate must be one that this system trusts";
    SERVER_FLOODS, "UNAVAILABLE", true, 7, "what listens there is no gateway that works, or means ill: look at --url, and at what runs there";
    NAME_NOT_OURS, "UNAVAILABLE", false, 4, "add the name to [gateway] hosts in that gateway's config.toml, then restart it";
    NOT_ON_LOOPBACK, "UNAVAILABLE", false, 1, "set [gateway] bind = \"127.0.0.1\" and restart the gateway: tunnels end there, and no network reaches it";
    SSH_MISSING, "UNAVAILABLE", false, 3, "install the OpenSSH client (Debian: openssh-client)";
    SSH_HOST_UNKNOWN, "UNAVAILABLE", false, 4, "log in once by hand (`ssh USER@HOST`) and compare the host's key with the one that its administrator tells";
    SSH_REFUSED, "UNAVAILABLE", false, 4, "a check types no password: put a key of yours into that user's authorized_keys, or into your agent";
    SSH_UNREACHABLE, "UNAVAILABLE", true, 1, "look at the name, the port and whether sshd runs there: `ssh USER@HOST` tells more";
    FORWARD_FAILED, "UNAVAILABLE", true, 1, "sshd there must allow it (AllowTcpForwarding, PermitOpen), and it must be the machine that the gateway runs on";
    TAILSCALE_UNREACHABLE, "UNAVAILABLE", true, 3, "start tailscaled on this machine, or name its socket: --tailscale-socket FILE";
    TAILSCALE_NOT_SERVING, "UNAVAILABLE", false, 1, "run the `tailscale serve` command that is printed, on the gateway's machine";
    TAILSCALE_FUNNEL, "UNAVAILABLE", false, 5, "Funnel opens the gateway to the whole internet: end it with `tailscale funnel reset`, then serve it anew";
    CREDENTIAL_NEEDED, "UNAVAILABLE", false, 4, "name a file of 0600 with that gateway's token: --token-file FILE; it is needed until this machine is paired there";
    CREDENTIAL_GIVEN, "INVALID_REQUEST", false, 1, "change it where it is given (PORTCULLIS_GATEWAY_TOKEN or [gateway.auth] token_file) and restart the gateway";
    CREDENTIAL_NOT_FOUND, "INVALID_REQUEST", false, 3, "`portcullis agents list` and `portcullis password list` show what there is";
    PASSWORD_INVALID, "INVALID_REQUEST", false, 2, "give 12 characters or more (`portcullis password set < file`), or a bcrypt hash of cost 10 to 14 (--hash)";
    TOKEN_INVALID, "UNAVAILABLE", false, 4, "a token is 24 to 512 printable characters and no placeholder: leave it out and one is made";
    OUTPUT_UNWRITABLE, "UNAVAILABLE", false, 1, "standard output was closed";
    INTERNAL, "UNAVAILABLE", true, 1, "this is a defect of ours: the log has the details";
}

/// By name.
pub fn find(name: &str) -> Option<&'static Code> {
    ALL.iter().copied().find(|c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_wire_codes_are_of_the_closed_set() {
        for (i, code) in ALL.iter().enumerate() {
            assert!(
                ALL[i + 1..].iter().all(|c| c.name != code.name),
                "{}",
                code.name
            );
            assert!(
                [
                    "NOT_PAIRED",
                    "INVALID_REQUEST",
                    "FORBIDDEN",
                    "APPROVAL_NOT_FOUND",
                    "UNAVAILABLE"
                ]
                .contains(&code.wire),
                "{}",
                code.name
            );
            assert!(!code.next.is_empty());
            assert_eq!(find(code.name), Some(*code));
        }
    }
}
