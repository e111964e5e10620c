//! The words of `portcullis sandbox image`.

use std::path::PathBuf;

use clap::Subcommand;

/// `sandbox image …`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Make an image for boxes on this machine, of Debian's packages or of its busybox, and give it to the engine
    Build {
        /// a-z, 0-9, `.`, `_`, `-`; a name that is there is given to the new image
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Packages to install, as bash,git,python3 (needs root and debootstrap); without any, the static busybox
        #[arg(long, value_delimiter = ',', value_name = "LIST")]
        packages: Vec<String>,
        /// Debian's release [default: this machine's, or stable]
        #[arg(long, value_name = "NAME", requires = "packages")]
        suite: Option<String>,
        /// Where packages come from [default: as debootstrap has it]
        #[arg(long, value_name = "URL", requires = "packages")]
        mirror: Option<String>,
    },
    /// Give the engine an image of a tar of a root file system: no devices, no setuid bits
    Import {
        /// The tar, or `-` for standard input
        file: PathBuf,
        /// As for build
        #[arg(long, value_name = "NAME")]
        name: String,
    },
    /// Images that were made here
    List,
    /// Read an image back out of the engine and compare every byte with what was imported
    Verify {
        /// Its name, or its id
        name: String,
    },
}
