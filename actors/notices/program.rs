//! A notice by a program of this machine: checked anew each time, given the notice as JSON, and ended with all that it started.

use super::actor::Notices;
use super::channel::blocking;
use super::config::ProgramConfig;
use super::messages::NoticesWiring;
use crate::exec::ProgramEnd;
use crate::supervision::Ctx;
use portcullis_core::notices::Notice;
use std::io;
use std::time::Duration;

/// The program of `[notices.program]`.
pub(super) struct Program {
    pub config: ProgramConfig,
    pub wiring: NoticesWiring,
    pub ctx: Ctx<Notices>,
}

impl Program {
    pub async fn tell(&mut self, notice: &Notice) -> Result<(), String> {
        let (plugins, ground) = (self.wiring.plugins.clone(), self.wiring.ground.clone());
        let name = self.config.plugin.clone();
        let run = blocking(&self.ctx, move || {
            let checked = plugins.check(&name);
            let checked = checked.map_err(|refused| {
                let code = refused.code.name;
                io::Error::other(format!("{code}: {refused}"))
            })?;
            ground.prepare(checked).map_err(io::Error::other)
        });
        let input = notice.body() + "\n";
        let limit = Duration::from_millis(self.config.timeout_ms);
        let run = run.await?;
        let end = run.run(&self.config.arguments, input.as_bytes(), limit);
        match end.await? {
            ProgramEnd::Code(0) => Ok(()),
            ProgramEnd::Code(code) => Err(format!("the program ended with {code}")),
            ProgramEnd::Signal(signal) => Err(format!("the program was ended by signal {signal}")),
            ProgramEnd::TimedOut => Err("the program took too long, and was ended".to_owned()),
        }
    }
}
