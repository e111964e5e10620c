//! `portcullis vault migrate`: what lay in the clear is in the vault, its file is gone, and what still holds it is named.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::security::canary::search::Search;
use crate::support::gateway::Gateway;
use crate::support::ws::{hex, random};

fn migrate(gateway: &Gateway, words: &[&str]) -> (i32, Value) {
    let output = gateway.cli(&[&["vault", "migrate"], words, &["--json"]].concat());
    let said = if output.stdout.is_empty() {
        &output.stderr
    } else {
        &output.stdout
    };
    let document = serde_json::from_slice(said);
    let document = document.unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code().unwrap(), document)
}

fn packed(text: &str) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, text.as_bytes()).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn what_lay_in_the_clear_is_in_the_vault_and_every_file_that_still_holds_it_is_named() {
    let mut gateway = Gateway::prepared(&[]);
    let home = gateway.home().to_owned();
    let backups = home.join("backups");
    fs::create_dir_all(backups.join("old")).unwrap();
    gateway.set(
        "vault.backups",
        &format!("[{:?}]", backups.display().to_string()),
    );
    gateway.launch();
    gateway.vault_is_open();
    let values: Vec<String> = ["plain", "in \"quotes\"/+"]
        .map(|word| format!("{word}-{}", hex(&random::<12>())))
        .to_vec();
    let escaped = values[1].replace('"', "\\\"");
    let text = format!(
        "# of the old days\nONE={}\nexport TWO=\"{escaped}\"\nTINY=abc\n",
        values[0]
    );
    let env = home.join(".env");
    let path = env.to_str().unwrap();
    fs::write(&env, &text).unwrap();
    // Copies, as people have them.
    let workspace = gateway.state().join("workspaces/demo");
    fs::create_dir_all(&workspace).unwrap();
    let at = |name: &str| backups.join(name);
    fs::write(at("old/.env"), &text).unwrap();
    let standard = base64::engine::general_purpose::STANDARD;
    fs::write(at("a.yaml"), standard.encode(format!("x{}y", values[1]))).unwrap();
    fs::write(at("b.json"), json!({ "two": values[1] }).to_string()).unwrap();
    fs::write(at("c.txt"), hex(values[0].as_bytes())).unwrap();
    fs::write(at("d.gz"), packed(&text)).unwrap();
    fs::write(at("e.txt"), "nothing").unwrap();
    fs::write(workspace.join("f"), &values[0]).unwrap();

    let (code, answer) = migrate(&gateway, &[path]);
    assert_eq!(code, 8, "{answer}");
    assert_eq!(answer["migrated"], json!(["ONE", "TWO", "TINY"]));
    assert_eq!(answer["rotate"], answer["migrated"]);
    assert_eq!((&answer["removed"], env.exists()), (&json!(true), false));
    let shown = |path: &Path| path.display().to_string();
    let mut expected = vec![
        json!({ "file": shown(&at("a.yaml")), "names": ["TWO"] }),
        json!({ "file": shown(&at("b.json")), "names": ["TWO"] }),
        json!({ "file": shown(&at("c.txt")), "names": ["ONE"] }),
        json!({ "file": shown(&at("old/.env")), "names": ["ONE", "TWO"] }),
        json!({ "file": shown(&workspace.join("f")), "names": ["ONE"] }),
    ];
    expected.sort_by_key(|one| one["file"].as_str().unwrap().to_owned());
    assert_eq!(answer["stillIn"], json!(expected));
    assert_eq!(answer["notLookedInto"], json!([shown(&at("d.gz"))]));
    assert_eq!(answer["notSearchedFor"], json!(["TINY"]));
    gateway.json(&["vault", "bind", "TWO", "--agent", "demo"]);
    let script = [
        "exec",
        "--agent",
        "demo",
        "--secret",
        "T=TWO",
        "--",
        "sh",
        "-c",
        "echo \"$T\"",
    ];
    let said = gateway.cli(&script).stdout;
    assert_eq!(String::from_utf8(said).unwrap(), format!("{}\n", values[1]));

    // Without those files nothing below the gateway's folders holds one, by another search than the command's own.
    fs::remove_dir_all(&backups).unwrap();
    fs::create_dir(&backups).unwrap();
    fs::remove_file(workspace.join("f")).unwrap();
    let canaries = ["ONE", "TWO"]
        .map(str::to_owned)
        .into_iter()
        .zip(values.iter().map(|v| v.clone().into_bytes()));
    let search = Search::of(&canaries.collect::<Vec<_>>());
    assert_eq!(search.tree(&home, &[]), std::collections::BTreeSet::new());

    // What is there already is not overwritten unasked, and its file stays.
    fs::write(&env, "ONE=another-value-of-it\n").unwrap();
    let (code, answer) = migrate(&gateway, &[path]);
    assert_eq!(
        (code, &answer["error"]["code"]),
        (5, &json!("VAULT_EXISTS"))
    );
    assert!(env.exists());
    let (code, answer) = migrate(&gateway, &["--replace", "--keep", path]);
    assert_eq!((code, &answer["removed"]), (8, &json!(false)), "{answer}");
    assert_eq!(
        answer["stillIn"],
        json!([{ "file": path, "names": ["ONE"] }])
    );
    let (code, answer) = migrate(&gateway, &["--replace", path]);
    assert_eq!((code, env.exists()), (0, false), "{answer}");
    let list = gateway.json(&["vault", "list"]);
    assert_eq!(list["entries"][0]["version"], 3, "{list}");
    // And while nothing can be kept nothing is taken away.
    gateway.json(&["vault", "seal"]);
    fs::write(&env, "NEW=value-of-it\n").unwrap();
    let (code, answer) = migrate(&gateway, &[path]);
    assert_eq!((code, &answer["error"]["code"]), (4, &json!("SEALED")));
    assert_eq!(fs::read_to_string(&env).unwrap(), "NEW=value-of-it\n");
}
