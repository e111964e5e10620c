//! The default box image: a tar made here from the host's static busybox, imported once, used by image id only.
//!
//! The tar is a pure function of the busybox file (fixed order, times and owners), so its SHA-256 names the image. An image found in the
//! engine is believed only if its single layer's diff id **is** that SHA-256 and its config says nothing: label and tag only help to find it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::models::{ImageConfig, ImageInspect};
use bollard::query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::driver::DriverError;
use super::engine::{CALL, Fault, bounded};
use super::hardening::significant;
use super::spec::{CELL_INSIDE, RUN_INSIDE, WORKSPACE_INSIDE};

/// Where Debian's and Ubuntu's `busybox-static` put it.
pub const BUSYBOX: &str = "/bin/busybox";
/// Label that carries the digest of the tar.
pub const ROOTFS_LABEL: &str = "portcullis.rootfs";
/// Repository part of the tag; the tag part is the digest of the tar.
const REPOSITORY: &str = "portcullis/base";
/// A busybox larger than this is not one.
const BUSYBOX_MAX: u64 = 16 << 20;
/// An import writes two megabytes to the engine's disk.
const IMPORT: Duration = Duration::from_mins(1);
const LIST_APPLETS: Duration = Duration::from_secs(5);

/// An image that is in the engine and whose content has been checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// `sha256:...`, as the engine names it: the only name by which boxes are made.
    pub id: String,
    /// SHA-256 of the tar, lower-case hex: equal on every host with the same busybox.
    pub rootfs: String,
}

/// The tar of a root file system and its name.
pub struct RootFs {
    tar: Vec<u8>,
    digest: String,
}

impl RootFs {
    /// SHA-256 of the tar, lower-case hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The tar, uncompressed.
    pub fn tar(&self) -> &[u8] {
        &self.tar
    }
}

/// Finds the image of this host's busybox in the engine, or imports it. Doing it twice gives the same id.
///
/// # Errors
/// `NO_DRIVER` with the command that fixes it when busybox is missing or not static, or when the engine does not keep what it was given.
pub async fn ensure(engine: &Engine, busybox: &Path) -> Result<Image, DriverError> {
    let rootfs = root_fs(busybox).await?;
    if let Some(id) = find(engine, &rootfs.digest).await? {
        return Ok(Image {
            id,
            rootfs: rootfs.digest,
        });
    }
    import(engine, rootfs).await
}

/// The id of a local image of the operator's, and its config. Nothing is fetched.
///
/// # Errors
/// That there is none, or what it brings that no box of ours may have.
pub(super) async fn local(engine: &Engine, name: &str) -> Result<(String, ImageConfig), String> {
    let said = match bounded(CALL, "inspect image", engine.inspect_image(name)).await {
        Ok(said) => said,
        Err(Fault::Engine(bollard::errors::Error::DockerResponseServerError {
            status_code: 404,
            ..
        })) => return Err("the engine has no such image".to_owned()),
        Err(fault) => return Err(fault.to_string()),
    };
    let id = said.id.filter(|id| id.starts_with("sha256:"));
    let id = id.ok_or("the engine names no id for it")?;
    if said.os.as_deref() != Some("linux") {
        return Err("it is not for Linux".to_owned());
    }
    let config = said.config.unwrap_or_default();
    if config.volumes.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(
            "it brings a volume, which would be a place to write that has no limit".to_owned(),
        );
    }
    let check = config.healthcheck.as_ref().and_then(|c| c.test.as_deref());
    if check.is_some_and(|test| !test.is_empty() && test != ["NONE"]) {
        return Err(
            "it brings a health check, which the engine would run in the box beside the cell"
                .to_owned(),
        );
    }
    Ok((id, config))
}

async fn find(engine: &Engine, digest: &str) -> Result<Option<String>, DriverError> {
    let filters = HashMap::from([("label", vec![format!("{ROOTFS_LABEL}={digest}")])]);
    let options = ListImagesOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let mut ids: Vec<String> = bounded(CALL, "list images", engine.list_images(Some(options)))
        .await
        .map_err(|fault| unusable(&fault))?
        .into_iter()
        .map(|image| image.id)
        .collect();
    // Two gateways may have imported at once: both then settle on the same one.
    ids.sort();
    ids.dedup();
    for id in ids {
        let Ok(said) = bounded(CALL, "inspect image", engine.inspect_image(&id)).await else {
            continue;
        };
        // One of an operator's own name has more labels, and a box of it would be another than was asked for.
        let labels = said
            .config
            .as_ref()
            .and_then(|config| config.labels.as_ref());
        let is_plain = labels.is_some_and(|labels| labels.len() == 1);
        if is_plain && differs(&said, digest).is_none() {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

async fn import(engine: &Engine, rootfs: RootFs) -> Result<Image, DriverError> {
    let RootFs { tar, digest } = rootfs;
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(REPOSITORY)
        .tag(&digest)
        .message("made from this host's static busybox")
        .changes(vec![format!("LABEL {ROOTFS_LABEL}={digest}")])
        .build();
    let mut said = engine.create_image(Some(options), Some(bollard::body_full(tar.into())), None);
    let id = bounded(IMPORT, "import image", async {
        let mut last = None;
        while let Some(item) = said.next().await {
            if let Some(status) = item?.status {
                last = Some(status);
            }
        }
        Ok(last)
    })
    .await
    .map_err(|fault| unusable(&fault))?
    .filter(|status| status.starts_with("sha256:"))
    .ok_or_else(|| unusable(&"the import ended without an image id"))?;
    let said = bounded(CALL, "inspect image", engine.inspect_image(&id))
        .await
        .map_err(|fault| unusable(&fault))?;
    match differs(&said, &digest) {
        None => Ok(Image { id, rootfs: digest }),
        Some(what) => Err(unusable(&format!(
            "the imported image is not what was sent: {what}"
        ))),
    }
}

/// What is wrong with an image that should be exactly our layer and nothing else.
pub(super) fn differs(said: &ImageInspect, digest: &str) -> Option<String> {
    let layers = said
        .root_fs
        .as_ref()
        .and_then(|fs| fs.layers.as_deref())
        .unwrap_or_default();
    if layers != [format!("sha256:{digest}")] {
        return Some(format!("its layers are {layers:?}"));
    }
    // Whatever an image's config says would be merged into every box.
    let config = ImageConfig {
        labels: None,
        ..said.config.clone().unwrap_or_default()
    };
    match serde_json::to_value(config) {
        Ok(value) => significant(value).map(|value| format!("its config says {value}")),
        Err(error) => Some(error.to_string()),
    }
}

/// Makes the tar. Reads two megabytes and hashes them: a few milliseconds, at a probe or after somebody removed the image.
///
/// # Errors
/// `NO_DRIVER` when busybox is missing, not static, or does not list its applets.
pub async fn root_fs(busybox: &Path) -> Result<RootFs, DriverError> {
    let size = std::fs::metadata(busybox)
        .map_err(|error| no_busybox(busybox, &error.to_string()))?
        .len();
    if size > BUSYBOX_MAX {
        return Err(no_busybox(busybox, "it is larger than 16 MiB"));
    }
    let program =
        std::fs::read(busybox).map_err(|error| no_busybox(busybox, &error.to_string()))?;
    if !is_static(&program) {
        return Err(no_busybox(busybox, "it is not a static program"));
    }
    let applets = applets(busybox).await?;
    let tar = write_tar(&program, &applets)
        .map_err(|error| no_busybox(busybox, &format!("its tar cannot be made: {error}")))?;
    let digest = hex(&Sha256::digest(&tar));
    Ok(RootFs { tar, digest })
}

/// Asks busybox which names it answers to. It runs on the host, with nothing: no environment, no input.
async fn applets(busybox: &Path) -> Result<Vec<String>, DriverError> {
    let listing = tokio::process::Command::new(busybox)
        .arg("--list")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let listing = tokio::time::timeout(LIST_APPLETS, listing)
        .await
        .map_err(|_| no_busybox(busybox, "`--list` gave no answer in 5 s"))?
        .map_err(|error| no_busybox(busybox, &error.to_string()))?;
    let mut names: Vec<String> = String::from_utf8_lossy(&listing.stdout)
        .lines()
        .filter(|name| (1..=40).contains(&name.len()) && !matches!(*name, "busybox" | "." | ".."))
        .filter(|name| {
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-[+".contains(&b))
        })
        .map(str::to_owned)
        .take(1024)
        .collect();
    names.sort();
    names.dedup();
    if names.iter().any(|name| name == "sh") {
        Ok(names)
    } else {
        Err(no_busybox(busybox, "`--list` names no shell"))
    }
}

const PASSWD: &str =
    "root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/workspace:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

fn write_tar(busybox: &[u8], applets: &[String]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::with_capacity(busybox.len() + (256 << 10)));
    for (path, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        (inside(RUN_INSIDE), 0o555),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/local", 0o755),
        ("usr/local/bin", 0o755),
        // Where it is in memory, runtimes give it this mode, and not every engine an owner.
        (inside(WORKSPACE_INSIDE), 0o1777),
    ] {
        entry(
            &mut tar,
            tar::EntryType::Directory,
            &format!("{path}/"),
            mode,
            &[],
            None,
        )?;
    }
    let file = tar::EntryType::Regular;
    entry(&mut tar, file, "etc/group", 0o444, GROUP.as_bytes(), None)?;
    entry(&mut tar, file, "etc/passwd", 0o444, PASSWD.as_bytes(), None)?;
    // The mount point of the cell: a file is mounted onto a file.
    entry(&mut tar, file, inside(CELL_INSIDE), 0o555, &[], None)?;
    entry(&mut tar, file, "bin/busybox", 0o755, busybox, None)?;
    let link = tar::EntryType::Symlink;
    for name in applets {
        entry(
            &mut tar,
            link,
            &format!("bin/{name}"),
            0o777,
            &[],
            Some("busybox"),
        )?;
    }
    // `#!/usr/bin/env` is in half of all scripts.
    entry(&mut tar, link, "sbin", 0o777, &[], Some("bin"))?;
    entry(&mut tar, link, "usr/bin", 0o777, &[], Some("../bin"))?;
    entry(&mut tar, link, "usr/sbin", 0o777, &[], Some("../bin"))?;
    tar.into_inner()
}

fn inside(path: &'static str) -> &'static str {
    path.trim_start_matches('/')
}

fn entry(
    tar: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    body: &[u8],
    link: Option<&str>,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(body.len() as u64);
    if let Some(target) = link {
        header.set_link_name(target)?;
    }
    header.set_cksum();
    tar.append(&header, body)
}

/// A 64-bit ELF program without an interpreter: nothing outside the box's own root is needed to run it.
fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
        bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
    let scan = || {
        if at::<6>(program, 0)? != *b"\x7fELF\x02\x01" {
            return None;
        }
        let table = usize::try_from(u64::from_le_bytes(at(program, 32)?)).ok()?;
        let size = usize::from(u16::from_le_bytes(at(program, 54)?));
        let count = usize::from(u16::from_le_bytes(at(program, 56)?));
        for index in 0..count {
            let offset = table.checked_add(index.checked_mul(size)?)?;
            if u32::from_le_bytes(at(program, offset)?) == PT_INTERP {
                return Some(false);
            }
        }
        Some(count > 0)
    };
    scan().unwrap_or(false)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn no_busybox(path: &Path, why: &str) -> DriverError {
    DriverError::NoDriver {
        driver: "docker",
        reason: format!("the box image is made from {}, and {why}", path.display()),
        fix: "run `apt-get install busybox-static`".to_owned(),
    }
}

fn unusable(fault: &dyn std::fmt::Display) -> DriverError {
    DriverError::NoDriver {
        driver: "docker",
        reason: format!("the engine does not take the box image: {fault}"),
        fix: "look at `docker info` and `df -h` of its data folder, then start the gateway again"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tar_depends_on_busybox_alone() {
        let busybox = Path::new(BUSYBOX);
        let first = root_fs(busybox).await.unwrap();
        let second = root_fs(busybox).await.unwrap();
        assert_eq!(first.digest(), second.digest());
        assert_eq!(first.tar(), second.tar());
        let mut names = Vec::new();
        for entry in tar::Archive::new(first.tar()).entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            assert_eq!(
                (entry.header().uid().unwrap(), entry.header().gid().unwrap()),
                (0, 0)
            );
            assert_eq!(
                entry.header().mode().unwrap() & 0o6000,
                0,
                "nothing is set-uid"
            );
            names.push(entry.path().unwrap().display().to_string());
        }
        for must in [
            "bin/sh",
            "bin/busybox",
            "usr/bin",
            "run/portcullis",
            "run/portcullis-cell",
            "etc/passwd",
            "workspace",
        ] {
            assert!(
                names.iter().any(|name| name.trim_end_matches('/') == must),
                "{must}"
            );
        }
        assert!(!names.iter().any(|name| name.contains("shadow")));
    }

    #[test]
    fn a_program_with_an_interpreter_or_a_cut_one_is_not_static() {
        let program = std::fs::read(BUSYBOX).expect("busybox-static is installed");
        assert!(is_static(&program));
        assert!(!is_static(&program[..100]));
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(&[]));
        // This very test binary is linked dynamically.
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(!is_static(&own));
    }
}
