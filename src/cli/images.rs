//! `portcullis sandbox image`: the one who makes boxes' images is the operator, on the engine's machine. The gateway has no part in
//! it, and nothing that came from a stranger either.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use portcullis_actors::sandbox_pool::images::{Images, ImagesError, Listed};
use portcullis_actors::sandbox_pool::{EngineConfig, image};
use portcullis_core::codes;
use serde_json::json;

use super::args::Image;
use super::copy::Signals;
use super::failure::Failure;
use super::out::{Out, note};
use crate::config;
use crate::images::NotMade;
use crate::images::debian::{self, Wanted};
use crate::images::rootfs::{self, Made};
use crate::show::text::{clean, table, utc};

/// Room for hundreds of megabytes, which a `/tmp` in memory may not have.
const PLACE: &str = "/var/tmp";

/// Runs one of them.
///
/// # Errors
/// [`Failure`].
pub async fn run(
    state: impl FnOnce() -> Result<PathBuf, Failure>,
    what: &Image,
    out: Out,
) -> Result<u8, Failure> {
    match what {
        Image::Build {
            name,
            packages,
            suite,
            mirror,
        } => {
            check_name(name)?;
            let wanted = Wanted {
                packages: packages.clone(),
                suite: suite.clone(),
                mirror: mirror.clone(),
            };
            wanted
                .check()
                .map_err(|why| Failure::of(codes::INVALID_PARAMS, why))?;
            let engine = engine(state)?;
            // Before the minute of work.
            let images = opened(&engine).await?;
            let folder = folder()?;
            if packages.is_empty() {
                let root = image::root_fs(&engine.busybox).await.map_err(driver)?;
                let tar = folder.path().join("tar");
                let made = rootfs::kept(root.tar(), root.digest(), created(&tar)?);
                let made = made.map_err(|error| Failure::io(codes::IMAGE_BUILD, PLACE, &error))?;
                return import(&images, name, "busybox", &tar, &made, out).await;
            }
            note(&format!(
                "installing {} into a root of its own; this takes a minute",
                packages.join(", ")
            ));
            let (tar, root) = (folder.path().join("tar"), folder.path().join("root"));
            let file = created(&tar)?;
            let mut signals = Signals::listen()?;
            fs::DirBuilder::new()
                .mode(0o755)
                .create(&root)
                .map_err(|error| Failure::io(codes::IMAGE_BUILD, PLACE, &error))?;
            let log = folder.path().join("log");
            let installed = tokio::select! {
                installed = debian::install(&wanted, &root, &log) => installed,
                // What was begun ends with the future, and what it has left is removed.
                end = signals.next() => return Ok(128 + end),
            };
            let versions = installed.map_err(not_made)?;
            let making = tokio::task::spawn_blocking(move || rootfs::from_folder(&root, file));
            let made = match until(making, &mut signals).await {
                Ok(made) => made.map_err(not_made)?,
                Err(end) => return Ok(128 + end),
            };
            import(&images, name, &versions.join(", "), &tar, &made, out).await
        }
        Image::Import { file, name } => {
            check_name(name)?;
            let images = opened(&engine(state)?).await?;
            let folder = folder()?;
            let tar = folder.path().join("tar");
            let to = created(&tar)?;
            let mut signals = Signals::listen()?;
            let from = file.clone();
            let making = tokio::task::spawn_blocking(move || {
                if from == Path::new("-") {
                    return rootfs::from_tar(io::stdin().lock(), to);
                }
                let named = |error| NotMade::new(format!("{}: {error}", from.display()));
                rootfs::from_tar(File::open(&from).map_err(named)?, to)
            });
            let made = match until(making, &mut signals).await {
                Ok(made) => made.map_err(not_made)?,
                Err(end) => return Ok(128 + end),
            };
            import(&images, name, "", &tar, &made, out).await
        }
        Image::List => {
            let images = opened(&engine(state)?).await?.list().await;
            let images = images.map_err(|error| failed(&error))?;
            let listed: Vec<_> = images.iter().map(shown).collect();
            out.both(&json!({ "images": listed }), || rows(&images))?;
            Ok(0)
        }
        Image::Verify { name } => verify(&opened(&engine(state)?).await?, name, out).await,
    }
}

/// What it makes, or the signal by which somebody ends it before: then its folder goes, and the process with it.
async fn until<T>(
    making: tokio::task::JoinHandle<Result<T, NotMade>>,
    signals: &mut Signals,
) -> Result<Result<T, NotMade>, u8> {
    tokio::select! {
        made = making => Ok(made.unwrap_or_else(|error| Err(NotMade::new(error.to_string())))),
        end = signals.next() => Err(end),
    }
}

async fn import(
    images: &Images,
    name: &str,
    packages: &str,
    tar: &Path,
    made: &Made,
    out: Out,
) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let id = tokio::select! {
        id = images.import(tar, &made.digest, name, packages) => id.map_err(|error| failed(&error))?,
        end = signals.next() => return Ok(128 + end),
    };
    let document = json!({
        "name": name, "id": id, "rootfs": made.digest, "bytes": made.bytes, "entries": made.entries,
        "dropped": made.dropped, "packages": packages, "hasShell": made.has_shell,
    });
    out.both(&document, || {
        let mut text = format!(
            "image     {name}  {}\nid        {id}\nrootfs    {}  ({} MiB, {} entries)\n",
            clean(packages),
            made.digest,
            made.bytes >> 20,
            made.entries
        );
        // Writing to a String cannot fail.
        if made.dropped > 0 {
            let _ = writeln!(text, "left out  {} devices, pipes or sockets", made.dropped);
        }
        if !made.has_shell {
            text.push_str("note      it has no /bin/sh\n");
        }
        let _ = writeln!(
            text,
            "use it    image = \"{id}\" in [sandbox] or [agents.NAME.sandbox], then restart the gateway"
        );
        text
    })?;
    Ok(0)
}

async fn verify(images: &Images, name: &str, out: Out) -> Result<u8, Failure> {
    let found = images.list().await.map_err(|error| failed(&error))?;
    let is_meant = |image: &&Listed| {
        let id = image.id.trim_start_matches("sha256:");
        image.name == name || image.id == name || (name.len() >= 12 && id.starts_with(name))
    };
    let meant: Vec<_> = found.iter().filter(is_meant).collect();
    if meant.is_empty() {
        let why = format!("no image that was made here is named {name:?}");
        let next = "`portcullis sandbox image list` shows them";
        return Err(Failure::of(codes::IMAGE_UNUSABLE, why).hint(next));
    }
    let mut verified = vec![];
    for image in meant {
        let bytes = images.verify(image).await.map_err(|error| match error {
            ImagesError::Altered(what) => Failure::of(
                codes::IMAGE_ALTERED,
                format!("{} is not what was imported: {}", image.id, clean(&what)),
            ),
            other => failed(&other),
        })?;
        verified.push((image, bytes));
    }
    let listed: Vec<_> = verified
        .iter()
        .map(|(image, bytes)| json!({ "image": shown(image), "bytesRead": bytes }))
        .collect();
    out.both(&json!({ "verified": listed }), || {
        verified
            .iter()
            .fold(String::new(), |mut text, (image, bytes)| {
                let name = clean(&image.name);
                let _ = writeln!(
                    text,
                    "{name}  {}  is what was imported: {bytes} bytes read, rootfs {}",
                    image.id, image.rootfs
                );
                text
            })
    })?;
    Ok(0)
}

fn shown(image: &Listed) -> serde_json::Value {
    json!({
        "name": image.name, "id": image.id, "rootfs": image.rootfs, "bytes": image.bytes,
        "madeSecs": image.made_secs, "packages": image.packages,
    })
}

fn rows(images: &[Listed]) -> String {
    let rows: Vec<_> = images
        .iter()
        .map(|image| {
            let name = if image.name.is_empty() {
                "(the default)"
            } else {
                &image.name
            };
            let made = u64::try_from(image.made_secs).unwrap_or_default();
            vec![
                name.to_owned(),
                image.id.clone(),
                format!("{} MiB", image.bytes >> 20),
                utc(made.saturating_mul(1000)),
                image.packages.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no image was made here: portcullis sandbox image build --name NAME --packages bash,git,python3\n"
            .to_owned();
    }
    table(&["NAME", "ID", "SIZE", "MADE", "PACKAGES"], &rows)
}

/// It becomes a part of a tag.
fn check_name(name: &str) -> Result<(), Failure> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(is_plain);
    let ends = name.bytes().last().is_some_and(is_plain);
    let is_good = begins
        && ends
        && name.len() <= 63
        && bytes.all(|b| is_plain(b) || b"._-".contains(&b))
        && !["..", "__", "._", "_.", "-.", ".-", "-_", "_-", "--"]
            .iter()
            .any(|pair| name.contains(pair));
    if is_good {
        return Ok(());
    }
    let rule = "an image is named like tools or tools-1: a-z, 0-9, and single . _ - between them, at most 63";
    Err(Failure::of(codes::INVALID_PARAMS, rule))
}

/// As the gateway of this state has it.
fn engine(state: impl FnOnce() -> Result<PathBuf, Failure>) -> Result<EngineConfig, Failure> {
    let path = state()?.join("config.toml");
    let loaded = config::load(&path, config::environment(), &[])
        .map_err(|error| super::config::failure(&error))?;
    Ok(EngineConfig {
        engine: loaded.config.sandbox.engine.clone(),
        docker_host: std::env::var("DOCKER_HOST").ok(),
        ..EngineConfig::default()
    })
}

async fn opened(engine: &EngineConfig) -> Result<Images, Failure> {
    Images::open(engine).await.map_err(driver)
}

fn folder() -> Result<tempfile::TempDir, Failure> {
    tempfile::Builder::new()
        .prefix("portcullis-image-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(PLACE)
        .map_err(|error| Failure::io(codes::IMAGE_BUILD, PLACE, &error))
}

fn created(path: &Path) -> Result<File, Failure> {
    File::create_new(path).map_err(|error| Failure::io(codes::IMAGE_BUILD, PLACE, &error))
}

fn driver(error: portcullis_actors::sandbox_pool::DriverError) -> Failure {
    failed(&ImagesError::Engine(error))
}

fn failed(error: &ImagesError) -> Failure {
    let code = match error {
        ImagesError::Engine(_) => codes::NO_DRIVER,
        ImagesError::Failed(_) => codes::IMAGE_BUILD,
        ImagesError::Altered(_) => codes::IMAGE_ALTERED,
    };
    Failure::of(code, clean(&error.to_string()))
}

fn not_made(error: NotMade) -> Failure {
    let failure = Failure::of(codes::IMAGE_BUILD, clean(&error.why));
    match error.next {
        Some(next) => failure.hint(next),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_an_engine_takes_as_it_is() {
        for good in ["tools", "a", "python3.11", "a-b_c.d", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "", "-a", "a-", "A", "a/b", "a:b", "a b", "..", "a..b", "a__b", "ü", "a\n", &long,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_names_each_image_and_an_empty_one_the_next_step() {
        let image = Listed {
            name: String::new(),
            id: "sha256:ab".to_owned(),
            rootfs: "cd".to_owned(),
            bytes: 3 << 20,
            made_secs: 0,
            content: String::new(),
            packages: "git 1\u{1b}[31m".to_owned(),
        };
        let text = rows(&[image]);
        assert!(
            text.contains("(the default)") && text.contains("3 MiB"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(rows(&[]).contains("sandbox image build"));
    }
}
