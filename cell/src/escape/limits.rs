//! How much it may take. Each tries a little more than is allowed, and no more than that.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Resource, Rlimit};

use super::{Attempt, Given, Outcome, Why, end, ourselves, refused};

/// More than what is allowed.
const MORE: u64 = 64;
const MEGABYTE: u64 = 1 << 20;
/// No trial takes more than this of a machine's memory.
const MOST: u64 = 4 << 30;

pub const ALL: &[(&str, Attempt)] = &[
    ("fork-bomb", |given| {
        let wanted = given.number("pids")? + MORE;
        let mut children = vec![];
        let stopped = loop {
            if children.len() as u64 >= wanted {
                break None;
            }
            match ourselves(&["hold"]).spawn() {
                Ok(child) => children.push(child),
                Err(error) => break Some(error),
            }
        };
        let count = children.len();
        children.into_iter().for_each(end);
        stopped.map_or_else(
            || Ok(format!("{count} processes")),
            |error| refused(format!("after {count} processes: {error}")),
        )
    }),
    ("descriptors", |given| {
        let wanted = given.number("files")? + MORE;
        let most = rustix::process::getrlimit(Resource::Nofile).maximum;
        let all = Rlimit {
            current: most,
            maximum: most,
        };
        rustix::process::setrlimit(Resource::Nofile, all)?;
        let mut held = vec![];
        while (held.len() as u64) < wanted {
            match File::open("/dev/null") {
                Ok(file) => held.push(file),
                Err(error) => return refused(format!("after {} files: {error}", held.len())),
            }
        }
        Ok(format!("{} files", held.len()))
    }),
    ("processor", |given| {
        let allowed = given.number("cpu")?;
        let there = std::thread::available_parallelism()?.get();
        if allowed >= there as u64 * 1000 {
            return Err(Why::Skipped("it may use all that there are".to_owned()));
        }
        let until = Instant::now() + Duration::from_secs(1);
        std::thread::scope(|threads| {
            for _ in 0..there {
                threads.spawn(|| while Instant::now() < until {});
            }
        });
        let stat = fs::read_to_string("/proc/self/stat")?;
        let after = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after.split_whitespace().skip(11).take(2);
        // A hundred a second, on every Linux.
        let used: u64 = ticks.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() * 10;
        if used > allowed + 300 {
            return Ok(format!("{used} ms of them in a second"));
        }
        refused(format!("{used} ms of them in a second"))
    }),
    ("long-file", |given| {
        let wanted = given.number("file-bytes")? + 1;
        let path = given.place("long");
        let file = File::create(&path)?;
        // Refused, the kernel also sends a signal that ends this process.
        let set = file.set_len(wanted);
        let _ = fs::remove_file(&path);
        set?;
        Ok(format!("{wanted} bytes"))
    }),
    ("memory", |given| {
        let wanted = memory(given)?;
        let mut held: Vec<Vec<u8>> = vec![];
        while (held.len() as u64) * 16 * MEGABYTE < wanted {
            let mut piece = Vec::new();
            let length = 16 << 20;
            piece
                .try_reserve_exact(length)
                .map_err(std::io::Error::other)?;
            piece.resize(length, 1);
            held.push(piece);
        }
        // So that it cannot be left out.
        let sum: u64 = held
            .iter()
            .map(|piece| u64::from(piece[piece.len() / 2]))
            .sum();
        Ok(format!("{wanted} bytes in {sum} pieces"))
    }),
    ("tmp-fill", |given| fill(given, &given.temporary())),
    ("shm-fill", |given| fill(given, Path::new("/dev/shm"))),
    ("tmp-inodes", |given| inodes(given, &given.temporary())),
    ("shm-inodes", |given| inodes(given, Path::new("/dev/shm"))),
];

fn memory(given: &Given) -> Result<u64, Why> {
    let wanted = given.number("memory")? + MORE * MEGABYTE;
    if wanted > MOST {
        return Err(Why::Skipped(
            "it may take more than a trial should".to_owned(),
        ));
    }
    Ok(wanted)
}

fn own_folder(of: &Path) -> Result<PathBuf, Why> {
    let folder = of.join(format!(".escape-{}", std::process::id()));
    fs::create_dir(&folder)?;
    Ok(folder)
}

fn fill(given: &Given, folder: &Path) -> Outcome {
    let wanted = memory(given)?;
    let folder = own_folder(folder)?;
    let piece = vec![1; 1 << 20];
    let mut written = 0;
    let stopped = loop {
        if written >= wanted {
            break None;
        }
        // Files of 64 pieces: the length of one has a limit of its own.
        let path = folder.join(format!("{}", written / (64 * MEGABYTE)));
        let file = File::options().append(true).create(true).open(path);
        match file.and_then(|mut file| file.write_all(&piece)) {
            Ok(()) => written += MEGABYTE,
            Err(error) => break Some(error),
        }
    };
    let _ = fs::remove_dir_all(folder);
    stopped.map_or_else(
        || Ok(format!("{written} bytes")),
        |error| refused(format!("after {written} bytes: {error}")),
    )
}

/// Empty files: what they take is the kernel's memory for them alone.
fn inodes(given: &Given, folder: &Path) -> Outcome {
    let folder = own_folder(folder)?;
    // An inode and its long name are more than a kilobyte.
    let wanted = memory(given)? / 1024;
    let long = "x".repeat(200);
    let mut made = 0;
    let stopped = loop {
        if made >= wanted {
            break None;
        }
        let path = folder.join(format!("{made}-{long}"));
        match rustix::fs::mknodat(CWD, &path, FileType::RegularFile, Mode::RUSR, 0) {
            Ok(()) => made += 1,
            Err(error) => break Some(error),
        }
    };
    let _ = fs::remove_dir_all(folder);
    stopped.map_or_else(
        || Ok(format!("{made} files")),
        |error| refused(format!("after {made} files: {error}")),
    )
}
