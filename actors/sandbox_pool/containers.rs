//! A container engine, as the pool has it: behind the runner, or in this process.

use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::{ImageName, RuntimeName};

use super::docker::Docker;
use super::driver::DriverError;
use super::image::Image;
use super::runner::Remote;
use super::spec::{BoxSpec, FoundBox, StartedBox};

/// Who speaks to the engine.
#[derive(Debug, Clone)]
pub enum Containers {
    /// This process: the runner itself, and tests of the driver.
    Here(Docker),
    /// The runner, for this process. A gateway has this one and no other.
    Runner(Remote),
}

impl Containers {
    /// See [`Docker::image`].
    pub fn image(&self) -> &Image {
        match self {
            Self::Here(docker) => docker.image(),
            Self::Runner(remote) => &remote.seen().image,
        }
    }

    /// See [`Docker::describe`].
    pub fn describe(&self) -> String {
        match self {
            Self::Here(docker) => docker.describe(),
            Self::Runner(remote) => remote.seen().describe(),
        }
    }

    /// The names of its runtimes.
    pub fn runtimes(&self) -> &[String] {
        match self {
            Self::Here(docker) => docker.runtimes(),
            Self::Runner(remote) => &remote.seen().facts.runtimes,
        }
    }

    /// Whether it has a runtime of this name.
    pub fn has_runtime(&self, name: &RuntimeName) -> bool {
        self.runtimes().iter().any(|has| has == name.as_str())
    }

    /// See [`Docker::shape`].
    pub fn shape(&self, spec: &BoxSpec) -> Vec<u8> {
        match self {
            Self::Here(docker) => docker.shape(spec),
            Self::Runner(remote) => super::docker::shape(spec, &remote.seen().facts),
        }
    }

    /// See [`Docker::start`].
    ///
    /// # Errors
    /// As there; the runner's refusal; its end before it answered.
    pub async fn start(&self, spec: &BoxSpec) -> Result<StartedBox, DriverError> {
        match self {
            Self::Here(docker) => docker.start(spec).await,
            Self::Runner(remote) => remote.start(spec).await,
        }
    }

    /// See [`Docker::stop`].
    ///
    /// # Errors
    /// As there; there is no runner.
    pub async fn stop(&self, id: &BoxId) -> Result<(), DriverError> {
        match self {
            Self::Here(docker) => docker.stop(id).await,
            Self::Runner(remote) => remote.stop(id).await,
        }
    }

    /// See [`Docker::init`].
    pub async fn init(&self, id: &BoxId) -> Option<u32> {
        match self {
            Self::Here(docker) => docker.init(id).await,
            Self::Runner(remote) => remote.init(id).await,
        }
    }

    /// See [`Docker::list`]; the runner lists this gateway's own, whoever is named.
    ///
    /// # Errors
    /// As there; there is no runner.
    pub async fn list(&self, owner: &str) -> Result<Vec<FoundBox>, DriverError> {
        match self {
            Self::Here(docker) => docker.list(owner).await,
            Self::Runner(remote) => remote.list().await,
        }
    }

    /// See [`Docker::lost`].
    pub async fn lost(&self) -> String {
        match self {
            Self::Here(docker) => docker.lost().await,
            Self::Runner(remote) => remote.lost().await,
        }
    }

    /// See [`Docker::find_image`].
    ///
    /// # Errors
    /// As there; there is no runner.
    pub async fn find_image(&self, name: &ImageName) -> Result<String, String> {
        match self {
            Self::Here(docker) => docker.find_image(name).await,
            Self::Runner(remote) => remote.find_image(name).await,
        }
    }
}
