//! `portcullis exec`: streams what the command writes, ends with its code.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_core::auth::Scope;
use portcullis_core::codes;
use portcullis_core::display::Terminal;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::args::{AttachArgs, ExecArgs};
use super::devices::find;
use super::failure::Failure;
use super::given::{Given, Next};
use super::out::{self, Out, note};
use super::{EXEC_REFUSED, Interrupts};
use crate::client::{Client, Door, Incoming};
use crate::show::text::{clean, document, typed};
use crate::show::value::{field, list, number};

/// Pieces of output (32 KiB each at most) between the socket and a slow reader of ours; beyond, we stop reading the
/// socket, and the gateway's flow control holds the command.
const PIECES: usize = 16;
/// What a shell reports for a command that ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// For a cancelled run to end, when nobody reads its output any more.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Runs it; returns the exit code.
///
/// # Errors
/// Every refusal: the caller ends with 125.
pub async fn run(door: &Door, args: &ExecArgs, out: Out) -> Result<u8, Failure> {
    let given = Given::of(args, out.json)?;
    let mut scopes = vec![Scope::ActAs];
    // To find it by the beginning of its id.
    scopes.extend(args.node.as_ref().map(|_| Scope::Read));
    let mut client = Client::connect(door, &scopes, &[]).await?;
    let mut params = params(args);
    given.ask(args, &mut params);
    if let Some(id) = &args.node {
        let nodes = client.call("node.list", json!({})).await?;
        let node = find(list(&nodes, "nodes"), "nodeId", id)?;
        params["target"] = format!("node:{}", field(node, "nodeId")).into();
    }
    if args.detach {
        params["detach"] = true.into();
    }
    let request = client.send("exec.run", params).await?;
    let writer = Writer::start(args.raw || args.tty || out.json);
    let mut run = Run {
        id: None,
        asked_to_end: false,
        leaves: args.detach.then_some(Leaves::AtOnce),
        named_session: args.session.is_some(),
        out,
    };
    let result = run.follow(&mut client, &request, writer, given).await;
    client.close().await;
    result
}

/// Reads a detached run to its end; returns its exit code.
///
/// # Errors
/// Every refusal: the caller ends with 125.
pub async fn attach(door: &Door, args: &AttachArgs, out: Out) -> Result<u8, Failure> {
    let mut client = Client::connect(door, &[Scope::ActAs], &[]).await?;
    let params = json!({ "runId": args.run });
    let request = client.send("exec.attach", params).await?;
    let writer = Writer::start(args.raw || out.json);
    let mut run = Run {
        id: None,
        asked_to_end: false,
        leaves: Some(if args.cancel {
            Leaves::Ends
        } else {
            Leaves::OnCtrlC
        }),
        named_session: false,
        out,
    };
    let result = run
        .follow(&mut client, &request, writer, Given::none())
        .await;
    client.close().await;
    result
}

fn params(args: &ExecArgs) -> Value {
    let mut params = json!({
        "argv": args.argv,
        "target": if args.host { "host" } else { "sandbox" },
        "idempotencyKey": args.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
    });
    if let Some(agent) = &args.agent {
        params["agent"] = agent.as_str().into();
    }
    if let Some(session) = &args.session {
        params["sessionKey"] = session.as_str().into();
    }
    if let Some(cwd) = &args.cwd {
        params["cwd"] = cwd.as_str().into();
    }
    if let Some(timeout) = args.timeout {
        params["timeoutMs"] = u64::try_from(timeout.as_millis())
            .unwrap_or(u64::MAX)
            .into();
    }
    if !args.env.is_empty() {
        let env: Map<String, Value> = args
            .env
            .iter()
            .map(|(k, v)| (k.clone(), v.as_str().into()))
            .collect();
        params["env"] = env.into();
    }
    if !args.secret.is_empty() {
        let secrets: Map<String, Value> = args
            .secret
            .iter()
            .map(|(k, v)| (k.clone(), v.as_str().into()))
            .collect();
        params["secrets"] = secrets.into();
    }
    params
}

struct Run {
    id: Option<String>,
    asked_to_end: bool,
    /// Of a detached one.
    leaves: Option<Leaves>,
    /// Its caller has named a session.
    named_session: bool,
    out: Out,
}

/// When we leave a run that goes on without us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// When it is known which one it is.
    AtOnce,
    OnCtrlC,
    /// Not: it is ended.
    Ends,
}

impl Run {
    async fn follow(
        &mut self,
        client: &mut Client,
        request: &str,
        mut writer: Writer,
        mut given: Given,
    ) -> Result<u8, Failure> {
        let pieces = writer.pieces.clone();
        let mut interrupts = Interrupts::listen();
        // Nobody reads our output: the run is cancelled, and its end is waited for a moment.
        let mut leave: Option<(Failure, Instant)> = None;
        loop {
            let incoming = tokio::select! {
                // Read on only when there is room for what comes.
                incoming = async {
                    // An error means that nobody takes any: `broken` tells.
                    let _ = pieces.reserve().await;
                    client.next().await
                } => incoming?,
                error = writer.broken() => {
                    self.cancel(client).await?;
                    leave = Some((error, Instant::now() + LEAVE_WITHIN));
                    continue;
                }
                next = given.next() => {
                    let id = self.id.clone().unwrap_or_default();
                    match next {
                        Next::Piece(piece) => given.send(client, &id, piece).await?,
                        Next::Resized => given.resize(client, &id).await?,
                        // It ends with our connection.
                        Next::End(signal) => return Ok(128 + signal),
                    }
                    continue;
                }
                error = left(&mut leave) => return Err(error),
                () = interrupts.next() => {
                    if self.asked_to_end || self.id.is_none() {
                        return Ok(INTERRUPTED);
                    }
                    if let (Some(Leaves::OnCtrlC), Some(id)) = (self.leaves, &self.id) {
                        note(&format!("left; it goes on: portcullis attach {}", typed(id)));
                        return Ok(INTERRUPTED);
                    }
                    note("cancelling; press ctrl-C again to leave at once");
                    self.cancel(client).await?;
                    continue;
                }
            };
            match incoming {
                Incoming::Event { event, payload, .. } if event == "exec.begun" => {
                    if self.id.as_deref() == Some(field(&payload, "runId"))
                        && number(&payload, "credit").is_some()
                    {
                        given.begin(client, field(&payload, "runId")).await?;
                    }
                }
                Incoming::Answer { id, result } if given.awaits(&id) => {
                    let run = self.id.clone().unwrap_or_default();
                    given.answered(client, &run, result).await?;
                }
                Incoming::Event { event, payload, .. } if event == "exec.output" => {
                    if self.id.as_deref() == Some(field(&payload, "runId")) {
                        self.output(&payload, &writer).await?;
                    }
                }
                Incoming::Answer { id, result } if id == request => {
                    let payload = result.map_err(|e| client.refusal(&e))?;
                    let end = self.answer(&payload)?;
                    match self.leaves {
                        Some(Leaves::AtOnce) if end.is_none() => return Ok(0),
                        Some(Leaves::Ends) if end.is_none() => self.cancel(client).await?,
                        _ => {}
                    }
                    if let Some(end) = end {
                        if let Some((error, _)) = leave {
                            return Err(error);
                        }
                        drop(pieces);
                        writer.finish().await?;
                        // What we say of it is for our terminal as it was.
                        drop(given);
                        self.end(client, &payload, end)?;
                        return Ok(end);
                    }
                }
                Incoming::Answer { .. } | Incoming::Event { .. } => {}
            }
        }
    }

    async fn cancel(&mut self, client: &mut Client) -> Result<(), Failure> {
        self.asked_to_end = true;
        if let Some(id) = &self.id {
            client.send("exec.cancel", json!({ "runId": id })).await?;
        }
        Ok(())
    }

    async fn output(&self, payload: &Value, writer: &Writer) -> Result<(), Failure> {
        let stream = field(payload, "stream");
        if let Some(dropped) = number(payload, "dropped").filter(|n| *n > 0) {
            note(&format!(
                "{dropped} bytes of {} were dropped: the output limit",
                clean(stream)
            ));
        }
        if self.out.json {
            let mut line = payload.clone();
            line["type"] = "output".into();
            return writer
                .write(Stream::Out, (document(&line) + "\n").into_bytes())
                .await;
        }
        let data = STANDARD.decode(field(payload, "data")).map_err(|_| {
            Failure::of(
                codes::INTERNAL,
                "the gateway sent output that is not base64",
            )
        })?;
        let stream = if stream == "stderr" {
            Stream::Err
        } else {
            Stream::Out
        };
        writer.write(stream, data).await
    }

    /// The run began, waits, or is over; over: its exit code.
    fn answer(&mut self, payload: &Value) -> Result<Option<u8>, Failure> {
        if let Some(id) = payload.get("runId").and_then(Value::as_str) {
            self.id = Some(id.to_owned());
        }
        let status = field(payload, "status");
        match status {
            "accepted" | "approval-pending" | "attached" => {
                if status == "approval-pending" {
                    let id = typed(field(payload, "approvalId"));
                    note(&format!(
                        "waiting for a person to decide on {id}: portcullis approvals show {id}"
                    ));
                }
                if self.out.json {
                    let mut line = payload.clone();
                    line["type"] = status.into();
                    out::line(&document(&line))?;
                } else if self.leaves == Some(Leaves::AtOnce) {
                    out::line(typed(self.id.as_deref().unwrap_or_default()))?;
                }
                Ok(None)
            }
            _ => Ok(Some(self.exit_code(status, payload))),
        }
    }

    fn exit_code(&self, status: &str, payload: &Value) -> u8 {
        match status {
            "exited" => {
                if let Some(code) = payload.get("exitCode").and_then(Value::as_i64) {
                    return u8::try_from(code & 0xff).unwrap_or(EXEC_REFUSED);
                }
                // As a shell: 128 and the signal's number.
                let signal = payload.get("signal").and_then(Value::as_u64).unwrap_or(0);
                u8::try_from(128 + signal.min(127)).unwrap_or(EXEC_REFUSED)
            }
            "cancelled" if self.asked_to_end => INTERRUPTED,
            _ => EXEC_REFUSED,
        }
    }

    /// Says how it ended, where that is not the command's own end.
    fn end(&self, client: &Client, payload: &Value, exit: u8) -> Result<(), Failure> {
        if self.out.json {
            let mut line = payload.clone();
            line["type"] = "end".into();
            line["exit"] = exit.into();
            return out::line(&document(&line));
        }
        let dropped: u64 = payload
            .get("dropped")
            .and_then(Value::as_object)
            .map_or(0, |d| d.values().filter_map(Value::as_u64).sum());
        if dropped > 0 {
            note(&format!(
                "{dropped} bytes of output were dropped: the output limit"
            ));
        }
        let killed = payload
            .pointer("/usage/outOfMemory")
            .and_then(Value::as_u64);
        if killed.unwrap_or(0) > 0 {
            note(
                "the sandbox's memory was used up, and the kernel ended what took it: `portcullis sandbox explain` shows the limit",
            );
        }
        let scope = payload.pointer("/provenance/scope").and_then(Value::as_str);
        if let Some(scope) = scope.filter(|scope| self.named_session && *scope != "session") {
            note(&format!(
                "--session made no difference: this agent's sandbox is not each session's own (scope {})",
                clean(scope)
            ));
        }
        if let Some(failure) = failure(client, payload) {
            note(failure.lines().trim_end());
        }
        Ok(())
    }
}

/// Why it did not come to its own end; none: it did.
pub(super) fn failure(client: &Client, payload: &Value) -> Option<Failure> {
    Some(match field(payload, "status") {
        "exited" => return None,
        "timed-out" => Failure::of(codes::DEADLINE, "the command was ended: its time was up")
            .hint("give it more: `--timeout 5m`"),
        "denied" if payload.pointer("/error/message").is_some() => {
            let error = &payload["error"];
            let code = codes::find(field(error, "code")).unwrap_or(codes::APPROVAL_DENIED);
            client.said(Failure::of(code, clean(field(error, "message"))))
        }
        "denied" => match field(payload, "reason") {
            "" => Failure::of(codes::APPROVAL_DENIED, codes::APPROVAL_DENIED.next)
                .hint("`portcullis audit query --action approval` shows who decided"),
            reason => Failure::of(
                codes::APPROVAL_DENIED,
                format!("a person refused this command: {reason}"),
            )
            .hint("`portcullis audit query --action approval` shows who decided"),
        },
        "expired" => Failure::of(
            codes::APPROVAL_EXPIRED,
            "nobody decided in time, which means no",
        ),
        "detached" => Failure::of(
            codes::RUN_READ_ELSEWHERE,
            "the run goes on, and is read from elsewhere now",
        ),
        "cancelled" if payload.pointer("/error/code").is_some() => {
            let error = &payload["error"];
            let code = codes::find(field(error, "code")).unwrap_or(codes::RUN_CANCELLED);
            client.said(Failure::of(code, clean(field(error, "message"))))
        }
        "cancelled" => Failure::of(codes::RUN_CANCELLED, "the command was cancelled"),
        "box-lost" | "unknown" => {
            let error = &payload["error"];
            let (code, text) = if field(payload, "status") == "unknown" {
                (
                    codes::RUN_UNKNOWN,
                    "whether the command finished is unknown",
                )
            } else {
                (codes::BOX_LOST, "the sandbox ended under the command")
            };
            let code = codes::find(field(error, "code")).unwrap_or(code);
            match field(error, "message") {
                "" => Failure::of(code, text),
                message => client.said(Failure::of(code, clean(message))),
            }
        }
        other => Failure::of(codes::INTERNAL, format!("the run ended as {other:?}")),
    })
}

/// Ready when it is time to leave.
async fn left(leave: &mut Option<(Failure, Instant)>) -> Failure {
    if let Some((_, at)) = leave {
        tokio::time::sleep_until(*at).await;
    }
    match leave.take() {
        Some((error, _)) => error,
        None => std::future::pending().await,
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

/// A thread that writes, so that a reader who does not read holds neither ctrl-C nor the socket's pings.
struct Writer {
    pieces: mpsc::Sender<(Stream, Vec<u8>)>,
    errors: mpsc::Receiver<std::io::Error>,
}

/// What a terminal may get of a stream; a file or a pipe gets every byte.
fn filter(raw: bool, stream: &impl IsTerminal) -> Option<Terminal> {
    (!raw && stream.is_terminal()).then(Terminal::default)
}

fn put(stream: Stream, data: &[u8]) -> std::io::Result<()> {
    match stream {
        Stream::Out => {
            let mut to = std::io::stdout().lock();
            to.write_all(data).and_then(|()| to.flush())
        }
        Stream::Err => std::io::stderr().lock().write_all(data),
    }
}

impl Writer {
    fn start(raw: bool) -> Self {
        let (pieces, mut todo) = mpsc::channel::<(Stream, Vec<u8>)>(PIECES);
        let (broke, errors) = mpsc::channel(1);
        std::thread::spawn(move || {
            let mut out = filter(raw, &std::io::stdout());
            let mut err = filter(raw, &std::io::stderr());
            while let Some((stream, data)) = todo.blocking_recv() {
                let terminal = match stream {
                    Stream::Out => &mut out,
                    Stream::Err => &mut err,
                };
                let written = match terminal {
                    Some(terminal) => put(stream, &terminal.push(&data)),
                    None => put(stream, &data),
                };
                if let Err(error) = written {
                    let _ = broke.blocking_send(error);
                    return;
                }
            }
            for (stream, terminal) in [(Stream::Out, out), (Stream::Err, err)] {
                let last = terminal.map(|mut terminal| terminal.finish());
                if let Some(Err(error)) = last.map(|data| put(stream, &data)) {
                    let _ = broke.blocking_send(error);
                    return;
                }
            }
        });
        Self { pieces, errors }
    }

    async fn write(&self, stream: Stream, data: Vec<u8>) -> Result<(), Failure> {
        // A dead writer has told its error to `broken`, which is asked before the next piece.
        let _ = self.pieces.send((stream, data)).await;
        Ok(())
    }

    /// Ready when a write has failed.
    async fn broken(&mut self) -> Failure {
        match self.errors.recv().await {
            Some(error) => {
                let mut failure = Failure::output(&error);
                failure.silent = false;
                failure
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until all is written.
    async fn finish(self) -> Result<(), Failure> {
        let Self { pieces, mut errors } = self;
        drop(pieces);
        match errors.recv().await {
            Some(error) => Err(Failure::output(&error)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            id: None,
            asked_to_end: false,
            leaves: None,
            named_session: false,
            out: Out { json: false },
        }
    }

    #[test]
    fn the_exit_code_is_the_childs_or_125() {
        let code = |v: Value| run().answer(&v).unwrap();
        assert_eq!(code(json!({"status": "accepted", "runId": "r"})), None);
        assert_eq!(code(json!({"status": "exited", "exitCode": 0})), Some(0));
        assert_eq!(
            code(json!({"status": "exited", "exitCode": 127})),
            Some(127)
        );
        assert_eq!(code(json!({"status": "exited", "signal": 9})), Some(137));
        for refused in [
            "timed-out",
            "denied",
            "box-lost",
            "unknown",
            "cancelled",
            "what",
        ] {
            assert_eq!(
                code(json!({"status": refused, "exitCode": 0})),
                Some(125),
                "{refused}"
            );
        }
    }

    #[test]
    fn ctrl_c_ends_as_a_shell_reports_it() {
        let mut run = run();
        run.asked_to_end = true;
        assert_eq!(
            run.answer(&json!({"status": "cancelled"})).unwrap(),
            Some(130)
        );
    }
}
