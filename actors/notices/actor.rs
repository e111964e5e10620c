//! The room: a task for each receiver, and how they and the programs of `[plugins]` stand.

use super::channel::{Channel, Way, blocking};
use super::messages::{ChannelStatus, NoticesMsg, NoticesStatus, NoticesWiring, PluginStatus};
use super::program::Program;
use super::webhook::Sender;
use crate::plugins::Plugins;
use crate::supervision::{Crash, Ctx, Flag, Room, Snapshot};
use portcullis_core::display::visible;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The notices' actor.
pub struct Notices {
    ctx: Ctx<Self>,
    wiring: NoticesWiring,
    channels: BTreeMap<&'static str, Arc<Flag<ChannelStatus>>>,
}

impl Room for Notices {
    const NAME: &'static str = "notices";
    type Msg = NoticesMsg;
    type Wiring = NoticesWiring;

    async fn start(wiring: &NoticesWiring, ctx: Ctx<Self>) -> Result<Self, Crash> {
        let mut room = Self {
            ctx: ctx.clone(),
            wiring: wiring.clone(),
            channels: BTreeMap::new(),
        };
        if let Some(to) = &wiring.settings.webhook {
            let sender = Sender {
                to: to.clone(),
                wiring: wiring.clone(),
                key: None,
            };
            room.begin("webhook", &to.host, Way::Webhook(Box::new(sender)));
        }
        if let Some(config) = &wiring.settings.program {
            let program = Program {
                config: config.clone(),
                wiring: wiring.clone(),
                ctx,
            };
            room.begin("program", &config.plugin, Way::Program(Box::new(program)));
        }
        Ok(room)
    }

    async fn handle(&mut self, msg: NoticesMsg) -> Result<(), Crash> {
        match msg {
            NoticesMsg::Status(reply) => reply.ok(self.status().await),
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        self.channels
            .iter()
            .fold(Snapshot::default(), |shown, (name, status)| {
                let status = status.get();
                let (told, waiting, lost) = (status.told, status.waiting, status.lost);
                let mut text = format!("{told} told, {waiting} waiting, {lost} lost");
                if let Some(error) = status.error {
                    text = format!("{text}; {error}");
                }
                shown.with(name, text)
            })
    }
}

impl Notices {
    fn begin(&mut self, name: &'static str, to: &str, way: Way) {
        let status = Arc::new(Flag::new(ChannelStatus {
            to: to.to_owned(),
            ..ChannelStatus::default()
        }));
        self.channels.insert(name, status.clone());
        let channel = Channel {
            name,
            way,
            wiring: self.wiring.clone(),
            ctx: self.ctx.clone(),
            status,
        };
        self.ctx.task(name, 0, channel.run()).keep();
    }

    async fn status(&self) -> NoticesStatus {
        let channels = self.channels.iter();
        let channels = channels
            .map(|(name, status)| (*name, status.get()))
            .collect();
        let plugins = self.wiring.plugins.clone();
        let _waiting = self.ctx.waiting();
        let plugins = blocking(&self.ctx, move || Ok(looked_at(&plugins))).await;
        NoticesStatus {
            channels,
            plugins: plugins.unwrap_or_default(),
        }
    }
}

/// Each as it would be found now. Blocks.
fn looked_at(plugins: &Plugins) -> BTreeMap<String, PluginStatus> {
    let one = |(name, plugin): (&str, &crate::plugins::Plugin)| {
        let refused = plugins.check(name).err();
        let status = PluginStatus {
            path: visible(&plugin.path.to_string_lossy()).into_owned(),
            state: refused.as_ref().map_or("ok", |refused| refused.code.name),
            error: refused.map(|refused| refused.message),
        };
        (name.to_owned(), status)
    };
    plugins.named().map(one).collect()
}
