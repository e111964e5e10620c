//! The manifest: which records there are, in which version, with which bytes.
//!
//! Each record's seal says that it belongs to its place; only the manifest says that it is the newest that was put there,
//! and that none is missing. It has pages (a record's page follows from its name), so that a change writes one page and
//! not all of it, and a top that is sealed: generation, epoch, the header's digest, and each page's digest. The digest of
//! the top goes into the audit intent of each change ([`super::mark`]), so an older manifest does not pass either.

use super::header::VaultKeys;
use super::{EPOCH_SEALS, VaultError};
use crate::encoding::{base64url, from_base64url, hex, unhex};
use crate::ids::Hash32;
use crate::seal::{NONCE, join};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const DOMAIN: &[u8] = b"portcullis-vault-manifest";
const PAGE_DOMAIN: &[u8] = b"portcullis-vault-page";
const FORMAT: u8 = 1;
/// Pages of a full manifest. One of 10,000 names of the greatest length has about 30 KiB.
pub const PAGES: u8 = 64;

/// Which key seals, and how often that epoch's keys have: never less often than any one of them did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// From 1.
    pub term: u32,
    /// Seals under it.
    pub seals: u64,
}

impl Epoch {
    /// Before the first seal.
    pub const FIRST: Self = Self { term: 1, seals: 0 };

    /// What so many seals leave behind: a higher count, or the first of a new epoch.
    #[must_use]
    pub const fn after(self, seals: u64) -> Self {
        if self.seals >= EPOCH_SEALS {
            return Self {
                term: self.term.saturating_add(1),
                seals,
            };
        }
        Self {
            seals: self.seals.saturating_add(seals),
            ..self
        }
    }
}

/// One record, as it must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Of its value.
    pub version: u64,
    /// SHA-256 of its stored bytes.
    pub hash: Hash32,
}

/// A page as stored (JSON). Its place in the top authenticates it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    v: u8,
    entries: BTreeMap<String, Entry>,
}

impl Page {
    fn digest(&self, number: u8) -> Hash32 {
        let number = [number];
        let mut fields: Vec<Vec<u8>> = vec![PAGE_DOMAIN.to_vec(), vec![FORMAT], number.to_vec()];
        for (id, entry) in &self.entries {
            fields.push(id.as_bytes().to_vec());
            fields.push(entry.version.to_be_bytes().to_vec());
            fields.push(entry.hash.0.to_vec());
        }
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        Hash32::of(&join(&fields))
    }
}

/// The top as stored (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedManifest {
    v: u8,
    term: u32,
    nonce: String,
    sealed: String,
}

/// What is sealed of the top.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Top {
    generation: u64,
    epoch: Epoch,
    header: Hash32,
    pages: BTreeMap<u8, Hash32>,
}

/// See the module. Cloning it copies no page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    generation: u64,
    epoch: Epoch,
    header: Hash32,
    pages: BTreeMap<u8, (Arc<Page>, Hash32)>,
}

impl Manifest {
    /// Of a vault without records, before its first change.
    pub const fn new(epoch: Epoch, header: Hash32) -> Self {
        Self {
            generation: 0,
            epoch,
            header,
            pages: BTreeMap::new(),
        }
    }

    /// Counts changes, from 1.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// What sealed it.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// SHA-256 of the stored header.
    pub const fn header(&self) -> Hash32 {
        self.header
    }

    /// What must be found under this id (see [`id_of`]).
    pub fn get(&self, id: &str) -> Option<Entry> {
        let (page, _) = self.pages.get(&page_of(id))?;
        page.entries.get(id).copied()
    }

    /// Everything that must be found.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Entry)> {
        self.pages
            .values()
            .flat_map(|(page, _)| page.entries.iter().map(|(id, entry)| (id.as_str(), *entry)))
    }

    /// What the audit log holds of this manifest.
    pub fn digest(&self, keys: &VaultKeys) -> Hash32 {
        let pages: Vec<u8> = self
            .pages
            .iter()
            .flat_map(|(number, (_, digest))| std::iter::once(*number).chain(digest.0))
            .collect();
        Hash32::of(&join(&[
            DOMAIN,
            &[FORMAT],
            &keys.store_id,
            &self.generation.to_be_bytes(),
            &self.epoch.term.to_be_bytes(),
            &self.epoch.seals.to_be_bytes(),
            &self.header.0,
            &pages,
        ]))
    }

    /// A page as it is to be stored; `None`: it is empty and is not.
    pub fn page(&self, number: u8) -> Option<&Page> {
        self.pages.get(&number).map(|(page, _)| &**page)
    }

    /// Seals the top. `nonce` is 96 random bits.
    pub fn seal(&self, keys: &VaultKeys, nonce: &[u8; NONCE]) -> Option<SealedManifest> {
        let top = Top {
            generation: self.generation,
            epoch: self.epoch,
            header: self.header,
            pages: self
                .pages
                .iter()
                .map(|(number, (_, digest))| (*number, *digest))
                .collect(),
        };
        let plain = serde_json::to_vec(&top).ok()?;
        let term = self.epoch.term;
        let sealed = keys
            .manifest_key(term)
            .seal(nonce, &aad(keys, &term.to_be_bytes()), &plain);
        Some(SealedManifest {
            v: FORMAT,
            term,
            nonce: hex(nonce),
            sealed: base64url(&sealed),
        })
    }

    /// Opens the top and takes in the pages that were found with it.
    ///
    /// # Errors
    /// [`VaultError::ManifestCorrupt`]: it does not open, or a page is not the one that it names.
    pub fn open(
        sealed: &SealedManifest,
        keys: &VaultKeys,
        found: BTreeMap<u8, Page>,
    ) -> Result<Self, VaultError> {
        let read = || {
            let nonce: [u8; NONCE] = unhex(&sealed.nonce)?;
            let bytes = from_base64url(&sealed.sealed)?;
            let term = sealed.term.to_be_bytes();
            let plain = keys
                .manifest_key(sealed.term)
                .open(&nonce, &aad(keys, &term), &bytes)?;
            serde_json::from_slice::<Top>(plain.expose()).ok()
        };
        let top = read()
            .filter(|top| sealed.v == FORMAT && top.epoch.term == sealed.term)
            .ok_or(VaultError::ManifestCorrupt)?;
        let mut pages = BTreeMap::new();
        for (number, page) in found {
            let digest = page.digest(number);
            let is_right = page.v == FORMAT && top.pages.get(&number) == Some(&digest);
            if !is_right || page.entries.keys().any(|id| page_of(id) != number) {
                return Err(VaultError::ManifestCorrupt);
            }
            pages.insert(number, (Arc::new(page), digest));
        }
        if pages.len() != top.pages.len() {
            return Err(VaultError::ManifestCorrupt);
        }
        Ok(Self {
            generation: top.generation,
            epoch: top.epoch,
            header: top.header,
            pages,
        })
    }

    /// The manifest after a change that seals so many records, still to be told what it changes.
    pub fn next(&self, seals: u64) -> Change {
        Change {
            manifest: Self {
                generation: self.generation.saturating_add(1),
                // The top is sealed by each change, also by one that seals no record.
                epoch: self.epoch.after(seals.max(1)),
                ..self.clone()
            },
            touched: BTreeSet::new(),
        }
    }
}

/// A manifest that is being made.
#[derive(Debug, Clone)]
pub struct Change {
    manifest: Manifest,
    touched: BTreeSet<u8>,
}

impl Change {
    /// What the records of this change are sealed under.
    pub const fn epoch(&self) -> Epoch {
        self.manifest.epoch
    }

    /// Begins a new epoch, in which this change seals so many.
    pub const fn begin_epoch(&mut self, seals: u64) {
        self.manifest.epoch = Epoch {
            term: self.manifest.epoch.term.saturating_add(1),
            seals,
        };
    }

    /// A record's new bytes.
    pub fn put(&mut self, id: &str, version: u64, stored: &[u8]) {
        let entry = Entry {
            version,
            hash: Hash32::of(stored),
        };
        self.with_page(id, |page| page.entries.insert(id.to_owned(), entry));
    }

    /// A record is no more.
    pub fn remove(&mut self, id: &str) {
        self.with_page(id, |page| page.entries.remove(id));
    }

    /// The header's new bytes.
    pub fn set_header(&mut self, stored: &[u8]) {
        self.manifest.header = Hash32::of(stored);
    }

    fn with_page<T>(&mut self, id: &str, change: impl FnOnce(&mut Page) -> T) {
        let number = page_of(id);
        let (page, digest) = self.manifest.pages.entry(number).or_insert_with(|| {
            let page = Page {
                v: FORMAT,
                ..Page::default()
            };
            (Arc::new(page), Hash32([0; 32]))
        });
        change(Arc::make_mut(page));
        *digest = page.digest(number);
        let is_empty = page.entries.is_empty();
        if is_empty {
            self.manifest.pages.remove(&number);
        }
        self.touched.insert(number);
    }

    /// The manifest, and the numbers of the pages that differ from those stored.
    pub fn finish(self) -> (Manifest, BTreeSet<u8>) {
        (self.manifest, self.touched)
    }
}

fn aad<'a>(keys: &'a VaultKeys, term: &'a [u8]) -> [&'a [u8]; 4] {
    [DOMAIN, &[FORMAT], &keys.store_id, term]
}

/// A record's id in the manifest.
pub fn id_of(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn page_of(id: &str) -> u8 {
    Hash32::of(id.as_bytes()).0[0] % PAGES
}
