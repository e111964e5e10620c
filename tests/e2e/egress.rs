//! Hosts by name, as a person sets them: the configuration, a run, the log, the plan.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use crate::support::gateway::Gateway;

/// Answers each request with the same.
fn host() -> (u16, std::thread::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let mut count = 0;
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            if head[..read].starts_with(b"STOP") {
                return count;
            }
            count += 1;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
    });
    (port, serving)
}

#[test]
fn a_run_reaches_the_hosts_of_the_configuration_and_log_and_plan_say_so() {
    let (port, serving) = host();
    let mut gateway = Gateway::prepared(&[]);
    let rule = format!("localhost:{port}");
    let config = format!(
        "[sandbox]\negress = [{rule:?}]\negress_to_networks = [\"127.0.0.0/8\", \"::1\"]\n"
    );
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, config).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    gateway.launch();
    let ask = |target: &str| {
        let script = format!(
            "printf 'GET http://{target}/ HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128"
        );
        let done = gateway.cli(&["exec", "--agent", "demo", "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let answer = ask(&rule);
    assert!(answer.ends_with("hello"), "{answer}");
    let answer = ask("denied.example");
    assert!(
        answer.starts_with("HTTP/1.1 403 ")
            && answer.contains(&format!("Allowed: {rule}."))
            && answer.contains("`egress` in [sandbox] of config.toml"),
        "{answer}"
    );
    let query = |action: &str| gateway.json(&["audit", "query", "--action", action]);
    let allowed = query("egress.allow").to_string();
    assert!(
        allowed.contains(&format!("\"object\":\"{rule}\"")),
        "{allowed}"
    );
    let denied = query("egress.deny").to_string();
    assert!(
        denied.contains("\"object\":\"denied.example:80\"") && denied.contains("not-listed"),
        "{denied}"
    );
    // The plan of the run has the list.
    let runs = query("exec.run");
    let seq = runs["records"][0]["record"]["seq"].as_u64().unwrap();
    let shown = gateway.json(&["audit", "show", &seq.to_string()]);
    assert_eq!(
        shown["plan"]["egress"]["hosts"],
        serde_json::json!([rule]),
        "{shown:#}"
    );
    let _ = std::net::TcpStream::connect(("127.0.0.1", port))
        .unwrap()
        .write_all(b"STOP");
    assert_eq!(serving.join().unwrap(), 1);
}

/// The bug: one list held for the boxes of all agents.
#[test]
fn each_agent_reaches_the_hosts_of_its_own_list_and_one_without_has_no_way_out() {
    let (port, serving) = host();
    let mut gateway = Gateway::prepared(&[]);
    let rule = format!("localhost:{port}");
    let config = format!(
        "[sandbox]\negress = [\"all.example\"]\negress_to_networks = [\"127.0.0.0/8\", \"::1\"]\n\
         [agents.one.sandbox]\negress = [{rule:?}]\n[agents.shut.sandbox]\negress = [\"-\"]\n"
    );
    let path = gateway.state().join("config.toml");
    std::fs::write(&path, config).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    gateway.launch();
    let script = format!(
        "echo proxy=$http_proxy; printf 'GET http://{rule}/ HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128"
    );
    let ask = |agent: &str| {
        let done = gateway.cli(&["exec", "--agent", agent, "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    assert!(ask("one").ends_with("hello"));
    let other = ask("other");
    assert!(
        other.contains("403") && other.contains("Allowed: all.example:443."),
        "{other}"
    );
    assert_eq!(ask("shut"), "proxy=\n");
    let explained = gateway.json(&["sandbox", "explain", "--agent", "one"]);
    let line = explained["lines"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["key"] == "egress")
        .unwrap();
    assert_eq!(line["value"], serde_json::json!([rule]));
    assert_eq!(line["from"], "[agents.one.sandbox]");
    let _ = std::net::TcpStream::connect(("127.0.0.1", port))
        .unwrap()
        .write_all(b"STOP");
    assert_eq!(serving.join().unwrap(), 1);
}
