//! `get` and `put` of the cell, as a box runs them, on files of this machine.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portcullis_cell::{CopyFailure, FileHead, MOST_FILE};
use tempfile::TempDir;

const CELL: &[u8] = include_bytes!(env!("PORTCULLIS_CELL"));

struct Scene {
    folder: TempDir,
    cell: TempDir,
}

impl Scene {
    fn new() -> Self {
        let cell = TempDir::new().unwrap();
        let program = cell.path().join("cell");
        fs::write(&program, CELL).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o555)).unwrap();
        Self {
            folder: TempDir::new().unwrap(),
            cell,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.cell.path().join("cell"));
        command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn get(&self, path: &Path) -> Output {
        let mut command = self.command(&["get", path.to_str().unwrap()]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn put(&self, path: &Path, more: &[&str], input: &[u8]) -> Output {
        let words = [&["put", path.to_str().unwrap(), "640"], more].concat();
        let mut child = self.command(&words).spawn().unwrap();
        // One that refuses does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn sized(data: &[u8]) -> Vec<u8> {
    [format!("{}\n", data.len()).as_bytes(), data].concat()
}

#[track_caller]
fn is(output: &Output, failure: CopyFailure, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    let code = u8::try_from(output.status.code().unwrap_or(-1)).unwrap_or(255);
    assert_eq!(code, failure.exit(), "{said}");
    assert!(said.contains(word), "{said}");
}

#[test]
fn get_gives_a_plain_file_after_its_line_and_nothing_else() {
    let scene = Scene::new();
    for data in [&b""[..], b"x", &vec![0xA5; 300_000]] {
        let path = scene.at("file");
        fs::write(&path, data).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o751)).unwrap();
        let output = scene.get(&path);
        assert!(
            output.status.success() && output.stdout == data,
            "{output:?}"
        );
        let line = String::from_utf8(output.stderr).unwrap();
        let head = FileHead::parse(line.strip_suffix('\n').unwrap()).unwrap();
        let found = fs::metadata(&path).unwrap();
        let wanted = (data.len() as u64, found.ino(), found.mtime(), 0o751);
        assert_eq!((head.size, head.inode, head.mtime, head.mode), wanted);
    }
    symlink(scene.at("file"), scene.at("link")).unwrap();
    assert_eq!(scene.get(&scene.at("link")).stdout.len(), 300_000);
    symlink(scene.at("loop"), scene.at("loop")).unwrap();
    symlink(scene.at("nowhere"), scene.at("dangling")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, scene.at("fifo"), 0o600.into()).unwrap();
    fs::create_dir(scene.at("folder")).unwrap();
    let large = fs::File::create(scene.at("large")).unwrap();
    large.set_len(MOST_FILE + 1).unwrap();
    let began = Instant::now();
    for (path, failure, word) in [
        (scene.at("loop"), CopyFailure::Unfit, "link"),
        (scene.at("dangling"), CopyFailure::Missing, "dangling"),
        (scene.at("fifo"), CopyFailure::Unfit, "is a pipe"),
        (scene.at("folder"), CopyFailure::Unfit, "is a folder"),
        (scene.at("file/below"), CopyFailure::Missing, "below"),
        (scene.at("large"), CopyFailure::TooLarge, "67108865"),
        ("/dev/zero".into(), CopyFailure::Unfit, "is a device"),
        (
            "/proc/self/status".into(),
            CopyFailure::Changed,
            "holds more",
        ),
        (scene.at("folder/../file"), CopyFailure::Unfit, "`..`"),
        ("../etc/passwd".into(), CopyFailure::Unfit, "`..`"),
        (scene.at("folder/"), CopyFailure::Unfit, "names a folder"),
        ("".into(), CopyFailure::Unfit, "names a folder"),
    ] {
        let output = scene.get(&path);
        is(&output, failure, word);
        assert!(output.stdout.is_empty(), "{path:?}");
    }
    // No pipe was waited for.
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_told() {
    let scene = Scene::new();
    let path = scene.at("busy");
    fs::write(&path, vec![1; 100_000]).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::File::options().append(true).open(&path).unwrap();
            while !over.load(Ordering::Relaxed) {
                file.write_all(b"more").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let output = scene.get(&path);
        over.store(true, Ordering::Relaxed);
        is(&output, CopyFailure::Changed, "busy");
    });
    // Between its two looks: it waits for its reader, and the file is another one by then.
    let child = scene
        .command(&["get", path.to_str().unwrap()])
        .spawn()
        .unwrap();
    let settled = fs::metadata(&path).unwrap().len();
    let filled = Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(format!("/proc/{}/wchan", child.id()))
        .is_ok_and(|place| place.contains("pipe"))
        && Instant::now() < filled
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(settled > 65_536, "more than a pipe holds");
    fs::write(&path, vec![2; usize::try_from(settled).unwrap()]).unwrap();
    let output = child.wait_with_output().unwrap();
    is(&output, CopyFailure::Changed, "changed while");
}

#[test]
fn put_makes_a_file_whole_or_not_at_all_and_never_through_a_link() {
    let scene = Scene::new();
    for data in [&b""[..], b"x", &vec![0x5A; 300_000]] {
        let path = scene.at("file");
        let output = scene.put(&path, &["replace"], &sized(data));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read(&path).unwrap(), data);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }
    fs::write(scene.at("old"), "old").unwrap();
    symlink(scene.at("old"), scene.at("link")).unwrap();
    symlink(scene.at("nowhere"), scene.at("dangling")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, scene.at("fifo"), 0o600.into()).unwrap();
    fs::create_dir(scene.at("folder")).unwrap();
    let before = scene.names();
    let new = sized(b"new");
    for (name, more, input, failure, word) in [
        ("old", &[][..], &new[..], CopyFailure::Exists, "exists"),
        (
            "link",
            &["replace"],
            &new,
            CopyFailure::Unfit,
            "symbolic link",
        ),
        (
            "dangling",
            &["replace"],
            &new,
            CopyFailure::Unfit,
            "symbolic link",
        ),
        ("dangling", &[], &new, CopyFailure::Unfit, "symbolic link"),
        ("fifo", &["replace"], &new, CopyFailure::Unfit, "a pipe"),
        ("folder", &["replace"], &new, CopyFailure::Unfit, "a folder"),
        (
            "folder/",
            &["replace"],
            &new,
            CopyFailure::Unfit,
            "names a folder",
        ),
        ("none/new", &[], &new, CopyFailure::Missing, "none"),
        ("folder/../new", &[], &new, CopyFailure::Unfit, "`..`"),
        ("new", &[], b"4\nnew", CopyFailure::Changed, "not all"),
        ("new", &[], b"2\nnew", CopyFailure::Changed, "more came"),
        ("new", &[], b"", CopyFailure::Changed, "no size"),
        ("new", &[], b"no\n", CopyFailure::Changed, "no size"),
        ("new", &[], b"67108865\n", CopyFailure::TooLarge, "67108865"),
        ("new", &["other"], &new, CopyFailure::Unfit, "usage"),
    ] {
        is(&scene.put(&scene.at(name), more, input), failure, word);
        assert_eq!(scene.names(), before, "{name} {more:?}");
    }
    assert_eq!(fs::read(scene.at("old")).unwrap(), b"old");
    assert!(
        fs::metadata(scene.at("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    // Into what a link of the same tree leads to.
    symlink(scene.at("folder"), scene.at("way")).unwrap();
    assert!(scene.put(&scene.at("way/new"), &[], &new).status.success());
    assert_eq!(fs::read(scene.at("folder/new")).unwrap(), b"new");
}

#[test]
fn a_put_that_is_killed_or_finds_no_room_leaves_nothing() {
    let scene = Scene::new();
    let path = scene.at("new");
    let mut child = scene
        .command(&["put", path.to_str().unwrap(), "644"])
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // More than a pipe holds: it has taken some.
    input.write_all(b"1000000\n").unwrap();
    input.write_all(&vec![1; 500_000]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(scene.names(), Vec::<String>::new());

    let small = scene.at("small");
    fs::create_dir(&small).unwrap();
    rustix::mount::mount(
        "none",
        &small,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"size=65536",
    )
    .unwrap();
    let output = scene.put(&small.join("new"), &[], &sized(&vec![1; 200_000]));
    let left = fs::read_dir(&small).unwrap().count();
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::empty()).unwrap();
    is(&output, CopyFailure::NoRoom, "No space left");
    assert_eq!(left, 0);

    // Over what a process may write of one file: told, not killed.
    let words = format!(
        "ulimit -f 100; exec {} put {} 644",
        scene.cell.path().join("cell").display(),
        path.display()
    );
    let mut child = Command::new("sh")
        .args(["-c", &words])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(&sized(&vec![1; 200_000]));
    is(
        &child.wait_with_output().unwrap(),
        CopyFailure::TooLarge,
        "of one file",
    );
    assert!(!path.exists());
}
