//! What happens when the log, or a run's own actor, breaks.

use std::time::Duration;

use portcullis_core::approval::Word;
use portcullis_core::codes;
use portcullis_core::plan::Target;

use super::harness::{Folders, alive, finish, house, until};
