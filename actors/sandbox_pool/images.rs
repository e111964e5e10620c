//! Images that an operator has made for boxes: imported into the engine from a tar that this program wrote, listed, and read back
//! byte for byte. For the command line; no room calls this, and nothing is fetched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::errors::Error as EngineError;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptionsBuilder, ListImagesOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use portcullis_core::encoding::hex;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::driver::DriverError;
use super::engine::{self, CALL, EngineConfig, Fault, WORK, bounded};
use super::image::{ROOTFS_LABEL, differs};

/// The name that it was given.
const NAME_LABEL: &str = "portcullis.image";
/// Digest of all that is in it ([`content`]).
const CONTENT_LABEL: &str = "portcullis.content";
/// What an engine puts into each container's root: boxes have their own in these places.
const ENGINES: [&str; 9] = [
    ".dockerenv",
    "dev",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "run/.containerenv",
    "sys",
];
/// What was asked to be in it, each with its version.
const PACKAGES_LABEL: &str = "portcullis.packages";
/// To write a gigabyte, or to read it.
const LONG: Duration = Duration::from_mins(10);
/// Of one piece of a tar on its way to the engine, bytes.
const PIECE: usize = 256 << 10;

/// A local engine, for an operator's images.
pub struct Images {
    engine: Engine,
}

/// An image of ours, as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As it was named; empty for the default image.
    pub name: String,
    /// `sha256:…`, by which boxes are made.
    pub id: String,
    /// SHA-256 of the tar that it was made from, lower-case hex.
    pub rootfs: String,
    /// Bytes on the engine's disk.
    pub bytes: u64,
    /// When it was imported, seconds of Unix time.
    pub made_secs: i64,
    /// Digest of its files: names, kinds, rights, owners, links and bytes.
    pub content: String,
    /// Names and versions, as they were asked for.
    pub packages: String,
}

/// Why there is no answer about an image.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The engine cannot be used.
    #[error(transparent)]
    Engine(#[from] DriverError),
    /// The engine did not do it.
    #[error("{0}")]
    Failed(String),
    /// It is not what was imported.
    #[error("{0}")]
    Altered(String),
}

impl From<Fault> for ImagesError {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault.to_string())
    }
}

impl From<io::Error> for ImagesError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Passes on what is written, and knows its SHA-256.
pub struct Hashed<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    /// Of nothing yet.
    pub fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// How many bytes there were, and their SHA-256 in lower-case hex.
    pub fn done(self) -> (u64, String) {
        (self.bytes, hex(&self.hash.finalize()))
    }
}

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Images {
    /// Connects to the engine that boxes are made by.
    ///
    /// # Errors
    /// `NO_DRIVER`, with what was seen and the command that mends it.
    pub async fn open(config: &EngineConfig) -> Result<Self, DriverError> {
        let engine = engine::open(config).await?.engine;
        Ok(Self { engine })
    }

    /// Imports a tar whose SHA-256 is `rootfs`, and makes sure that the engine has just this layer and nothing else. Its id.
    /// `name` and `packages` hold no quote, backslash or line end.
    ///
    /// # Errors
    /// The engine refuses, or made something else of it.
    pub async fn import(
        &self,
        tar: &Path,
        rootfs: &str,
        name: &str,
        packages: &str,
    ) -> Result<String, ImagesError> {
        let content = content(File::open(tar)?)?;
        let changes = [
            format!("LABEL {ROOTFS_LABEL}={rootfs}"),
            format!("LABEL {CONTENT_LABEL}={content}"),
            format!("LABEL {NAME_LABEL}={name}"),
            format!("LABEL {PACKAGES_LABEL}=\"{packages}\""),
        ];
        let options = CreateImageOptionsBuilder::default()
            .from_src("-")
            .repo(&format!("portcullis/{name}"))
            .tag(rootfs)
            .message("made by portcullis sandbox image")
            .changes(changes.to_vec())
            .build();
        let file = File::open(tar)?;
        let pieces = stream::try_unfold(file, |mut file| async move {
            let mut piece = vec![0; PIECE];
            let read = file.read(&mut piece)?;
            piece.truncate(read);
            Ok((read > 0).then_some((piece.into(), file)))
        });
        let body = bollard::body_try_stream(pieces);
        let mut said = self.engine.create_image(Some(options), Some(body), None);
        let id = bounded(LONG, "import image", async {
            let mut last = None;
            while let Some(item) = said.next().await {
                last = item?.status.or(last);
            }
            Ok(last)
        })
        .await?
        .filter(|status| status.starts_with("sha256:"))
        .ok_or_else(|| ImagesError::Failed("the import ended without an image id".to_owned()))?;
        let inspect = self.engine.inspect_image(&id);
        let said = bounded(CALL, "inspect image", inspect).await?;
        match differs(&said, rootfs) {
            None => Ok(id),
            Some(what) => Err(ImagesError::Altered(format!(
                "the imported image is not what was sent: {what}"
            ))),
        }
    }

    /// Every image that was imported by this program, the newest first.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn list(&self) -> Result<Vec<Listed>, ImagesError> {
        let filters = HashMap::from([("label", vec![ROOTFS_LABEL.to_owned()])]);
        let options = ListImagesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let found = self.engine.list_images(Some(options));
        let found = bounded(CALL, "list images", found).await?;
        let mut found: Vec<Listed> = found
            .into_iter()
            .map(|image| {
                let label = |name: &str| image.labels.get(name).cloned().unwrap_or_default();
                Listed {
                    name: label(NAME_LABEL),
                    rootfs: label(ROOTFS_LABEL),
                    content: label(CONTENT_LABEL),
                    packages: label(PACKAGES_LABEL),
                    bytes: u64::try_from(image.size).unwrap_or_default(),
                    made_secs: image.created,
                    id: image.id,
                }
            })
            .collect();
        found.sort_by(|a, b| (b.made_secs, &b.id).cmp(&(a.made_secs, &a.id)));
        Ok(found)
    }

    /// Reads an image out of the engine, and compares it with what was imported: its configuration with its id, which covers the
    /// labels; its layer with the digest there; and, in a container that is made for it and never started, each file that a box would
    /// see: an engine gives a layer back by names and rights that it has noted beside it. How many bytes were read.
    ///
    /// # Errors
    /// [`ImagesError::Altered`]: it is something else. Others: it could not be read.
    pub async fn verify(&self, image: &Listed) -> Result<u64, ImagesError> {
        let inspect = self.engine.inspect_image(&image.id);
        let said = bounded(CALL, "inspect image", inspect).await?;
        if let Some(what) = differs(&said, &image.rootfs) {
            return Err(ImagesError::Altered(what));
        }
        let file = read(self.engine.export_image(&image.id)).await?;
        let wanted = [image.id.trim_start_matches("sha256:"), &image.rootfs];
        let (mut met, mut bytes) = (BTreeSet::new(), 0);
        // Both forms of archive are read alike: the layer and the configuration are files in it.
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry?;
            let mut read = Hashed::new(io::sink());
            io::copy(&mut entry, &mut read)?;
            let (size, digest) = read.done();
            if digest == image.rootfs {
                bytes = size;
            }
            met.insert(digest);
        }
        for (digest, what) in wanted.into_iter().zip(["its configuration", "its layer"]) {
            if !met.contains(digest) {
                return Err(ImagesError::Altered(format!(
                    "{what} does not have the digest {digest} any more"
                )));
            }
        }
        if image.content.is_empty() {
            // The default image: what it must be is compared with this host's busybox at each start.
            return Ok(bytes);
        }
        let body = ContainerCreateBody {
            image: Some(image.id.clone()),
            cmd: Some(vec!["/never/started".to_owned()]),
            network_disabled: Some(true),
            ..ContainerCreateBody::default()
        };
        let made = self
            .engine
            .create_container(None::<CreateContainerOptions>, body);
        let container = bounded(WORK, "create", made).await?.id;
        let seen = match read(self.engine.export_container(&container)).await {
            Ok(file) => content(file).map_err(ImagesError::from),
            Err(error) => Err(error),
        };
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let removed = self.engine.remove_container(&container, Some(options));
        bounded(WORK, "remove", removed).await?;
        if seen? != image.content {
            return Err(ImagesError::Altered(
                "a box of it would see other files than were imported".to_owned(),
            ));
        }
        Ok(bytes)
    }
}

/// All of an export, in a file without a name.
async fn read(pieces: impl Stream<Item = Result<Bytes, EngineError>>) -> Result<File, ImagesError> {
    let mut file = tempfile::tempfile()?;
    let mut pieces = pin!(pieces);
    bounded(LONG, "export", async {
        while let Some(piece) = pieces.try_next().await? {
            file.write_all(&piece)?;
        }
        Ok(())
    })
    .await
    .map_err(|fault| match fault {
        // An engine that rebuilds a layer from altered files says so instead of giving it.
        Fault::Engine(error) => ImagesError::Altered(format!(
            "the engine cannot give it back: {}",
            engine::words(&error)
        )),
        late @ Fault::Late { .. } => late.into(),
    })?;
    file.rewind()?;
    Ok(file)
}

/// SHA-256 over all files of a tar, in the order of their names: each one's kind, rights, owner, and bytes or target. What an engine
/// itself puts into a root is left out, and so are times: no box decides anything by them.
///
/// # Errors
/// It is no tar, or cannot be read.
pub fn content(tar: impl Read) -> io::Result<String> {
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let path: PathBuf = entry
            .path()?
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let is_engines = ENGINES.iter().any(|name| path.starts_with(name));
        if path == Path::new("") || is_engines {
            continue;
        }
        let (kind, target) = (entry.header().entry_type(), entry.link_name()?);
        let target = target.map(std::borrow::Cow::into_owned).unwrap_or_default();
        // The same file under another name.
        if let Some(first) = files.get(&target).filter(|_| kind == EntryType::Link) {
            let first = first.clone();
            files.insert(path, first);
            continue;
        }
        let header = entry.header();
        let (mode, uid, gid) = (header.mode()?, header.uid()?, header.gid()?);
        let mut bytes = Hashed::new(io::sink());
        io::copy(&mut entry, &mut bytes)?;
        let what = if kind == EntryType::Symlink {
            format!("link {uid} {gid} {}", target.display())
        } else {
            let (size, digest) = bytes.done();
            format!("{kind:?} {:o} {uid} {gid} {size} {digest}", mode & 0o7777)
        };
        files.insert(path, what);
    }
    let mut all = Hashed::new(io::sink());
    for (path, what) in &files {
        let name = path.as_os_str().as_encoded_bytes();
        all.write_all(&(name.len() as u64).to_be_bytes())?;
        all.write_all(name)?;
        all.write_all(&(what.len() as u64).to_be_bytes())?;
        all.write_all(what.as_bytes())?;
    }
    Ok(all.done().1)
}
