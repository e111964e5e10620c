//! Checkpoints handed out, and proofs that fit them.

use super::error::AuditError;
use super::tiles::read_full;
use portcullis_core::audit::note::verifier_key;
use portcullis_core::audit::tree::{Nodes, prove_consistency, prove_inclusion, root_of};
use portcullis_core::audit::{Hash32, PublicKey, Seq, SignedCheckpoint, Tile, TileEdge, TileNodes};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// The log as its writer signs for it now.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Over every durable record.
    pub checkpoint: Arc<SignedCheckpoint>,
    /// The log's first public key.
    pub first_key: PublicKey,
    /// The tree of that size.
    pub(super) edge: TileEdge,
}

/// A checkpoint as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// The log's name.
    pub origin: String,
    /// Records.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash32,
    /// The signed note.
    pub note: String,
    /// The log's first public key, which `verify --key` takes.
    pub first_key: String,
}

/// That a record is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inclusion {
    /// The record.
    pub seq: Seq,
    /// Its leaf hash.
    pub leaf_hash: Hash32,
    /// From the leaf up.
    pub path: Vec<Hash32>,
    /// The log that it is in.
    pub checkpoint: Told,
}

/// That the log has only grown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consistency {
    /// The smaller size.
    pub old: u64,
    /// Its root.
    pub old_root: Hash32,
    /// The larger size.
    pub new: u64,
    /// Its root.
    pub new_root: Hash32,
    /// From the bottom up.
    pub path: Vec<Hash32>,
    /// The log now.
    pub checkpoint: Told,
}

impl Signed {
    /// As it is told.
    pub fn told(&self) -> Told {
        let checkpoint = &self.checkpoint.checkpoint;
        Told {
            origin: checkpoint.origin.clone(),
            size: checkpoint.size,
            root: checkpoint.root,
            note: self.checkpoint.to_text(),
            first_key: verifier_key(&checkpoint.origin, &self.first_key),
        }
    }

    fn nodes<'a>(
        &'a self,
        dir: &'a Path,
    ) -> TileNodes<'a, impl FnMut(Tile) -> Option<Vec<Hash32>>> {
        TileNodes::new(&self.edge, |tile| read_full(dir, tile))
    }

    /// Proves that the record is in the log. What is proven is checked before it is told.
    pub(super) fn prove(&self, dir: &Path, seq: Seq) -> Result<Inclusion, AuditError> {
        let (size, root) = (self.edge.size(), self.edge.root());
        let index = seq.0.wrapping_sub(1);
        if index >= size {
            return Err(AuditError::NoRecord { seq, size });
        }
        let mut nodes = self.nodes(dir);
        let path = prove_inclusion(&mut nodes, index, size).ok_or_else(gone)?;
        let leaf_hash = nodes.node(0, index).ok_or_else(gone)?;
        if !portcullis_core::audit::tree::check_inclusion(&leaf_hash, index, size, &path, &root) {
            return Err(gone());
        }
        Ok(Inclusion {
            seq,
            leaf_hash,
            path,
            checkpoint: self.told(),
        })
    }

    /// Proves that the log of `new` records goes on from that of `old` records; 0 stands for all that there are.
    pub(super) fn consistency(
        &self,
        dir: &Path,
        old: u64,
        new: u64,
    ) -> Result<Consistency, AuditError> {
        let size = self.edge.size();
        let new = if new == 0 { size } else { new };
        if old > new || new > size {
            let seq = Seq(old.max(new));
            return Err(AuditError::NoRecord { seq, size });
        }
        let mut nodes = self.nodes(dir);
        let mut root = |size| root_of(&mut nodes, size).ok_or_else(gone);
        let (old_root, new_root, own) = (root(old)?, root(new)?, root(size)?);
        let path = prove_consistency(&mut nodes, old, new).ok_or_else(gone)?;
        if own != self.edge.root() {
            return Err(gone());
        }
        Ok(Consistency {
            old,
            old_root,
            new,
            new_root,
            path,
            checkpoint: self.told(),
        })
    }
}

/// Tiles that do not give the signed root.
fn gone() -> AuditError {
    AuditError::Unreadable(
        "tiles of the tree are missing or not right; `portcullis audit verify` says which, and a start makes missing ones anew".to_owned(),
    )
}
