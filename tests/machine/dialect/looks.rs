//! Lines that look at the state.

use std::fmt::Write as _;

use wharf::machine::Wanted;

use super::{Result, Runner};
use crate::build::{self, Args};
use crate::render;

impl Runner {
    /// A look at the state; `None`: no such line.
    pub(super) fn look(&mut self, name: &str, args: &mut Args) -> Result<Option<String>> {
        let mut out = String::new();
        let machine = &self.stage.machine;
        match name {
            "get" => {
                for word in args.rest() {
                    let (queue, id) = self.split(&word);
                    match machine.package(&queue, &id) {
                        Ok(view) => writeln!(out, "{}", render::package(&view))?,
                        Err(reject) => writeln!(out, "{queue}/{id} refused: {}", render::reject(&reject))?,
                    }
                }
            }
            // Who paid: more attempts than a completion at the first lease explains.
            "charged" => {
                for word in args.rest() {
                    let (queue, id) = self.split(&word);
                    let Ok(view) = machine.package(&queue, &id) else { continue };
                    let free = u32::from(view.state == wharf::types::State::Completed);
                    if view.attempts > free {
                        writeln!(out, "{queue}/{id} {} attempts, {}", view.attempts, view.state.as_str())?;
                    }
                }
            }
            "queue" => {
                let names = args.rest();
                for name in if names.is_empty() { vec![self.queue.clone()] } else { names } {
                    match machine.queue(&name) {
                        Ok(view) => writeln!(out, "{}", render::queue(&view))?,
                        Err(reject) => writeln!(out, "{name} refused: {}", render::reject(&reject))?,
                    }
                }
            }
            "settings" => {
                let name = args.next().unwrap_or_else(|| self.queue.clone());
                let view = machine.queue(&name).map_err(|reject| render::reject(&reject))?;
                writeln!(out, "{}", render::queue_settings(&view.settings))?;
            }
            "queues" => {
                let prefix = args.next().unwrap_or_default();
                for view in machine.queues(&prefix) {
                    writeln!(out, "{}", render::queue(&view))?;
                }
            }
            "session" => {
                for name in args.rest() {
                    match machine.session(&name) {
                        Ok(view) => writeln!(out, "{}", render::session(&view))?,
                        Err(reject) => writeln!(out, "{name} refused: {}", render::reject(&reject))?,
                    }
                }
            }
            "sessions" => {
                for view in machine.sessions(args.next().as_deref()) {
                    writeln!(out, "{}", render::session(&view))?;
                }
            }
            "held" => {
                for name in args.rest() {
                    writeln!(out, "{name} holds {}", render::deliveries(&machine.held(&name)))?;
                }
            }
            "list" => {
                let queue = args.word("queue")?;
                let wanted = Wanted {
                    states: build::states(args.rest())?.into_iter().fold(0, |bits, state| bits | 1 << state),
                    labels: args.labels(),
                    kind: args.text("kind").unwrap_or_default(),
                };
                let most = args.number("most")?.unwrap_or(usize::MAX);
                let looks = args.number("looks")?.unwrap_or(usize::MAX);
                let (from, end) = match args.text("next") {
                    Some(next) if next == "last" => self.list.ok_or("the list before has no more")?,
                    _ => (0, machine.list_end()),
                };
                match machine.list(&queue, &wanted, from, end, looks, most) {
                    Ok(listed) => {
                        let ids: Vec<String> = listed.packages.iter().map(|view| view.id.to_string()).collect();
                        let more = if listed.next.is_some() { "more" } else { "no more" };
                        writeln!(out, "{}; {more}", if ids.is_empty() { "none".into() } else { ids.join(" ") })?;
                        self.list = listed.next.map(|next| (next, end));
                    }
                    Err(reject) => writeln!(out, "refused: {}", render::reject(&reject))?,
                }
            }
            "purgeable" => {
                let queue = args.word("queue")?;
                match machine.count_purgeable(&queue, &build::states(args.rest())?) {
                    Ok(count) => writeln!(out, "{count}")?,
                    Err(reject) => writeln!(out, "refused: {}", render::reject(&reject))?,
                }
            }
            "recallable" => {
                for (session, epoch, count) in machine.recallable() {
                    writeln!(out, "{session} epoch={} count={count}", epoch.0)?;
                }
            }
            "settings_of_cluster" => writeln!(out, "{}", render::cluster(&machine.cluster_settings()))?,
            "summary" => writeln!(out, "{}", render::summary(&machine.summary()))?,
            _ => return Ok(None),
        }
        if out.is_empty() {
            out.push_str("none\n");
        }
        Ok(Some(out))
    }
}
