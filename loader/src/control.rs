//! The control connection: it proves that this loader lives, every 2 seconds, and looks at who owns what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::config::Postgres;
use crate::offsets;
use crate::postgres;

const RENEWAL: Duration = Duration::from_secs(2);
/// At first more often: the sessions of a loader that this one replaces may take a moment to end.
const FIRST_RENEWALS: (u32, Duration) = (10, Duration::from_millis(200));

/// Living members, and each part with its living owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    pub members: Vec<Uuid>,
    pub owners: BTreeMap<i32, Option<Uuid>>,
    /// Committed positions, also of parts that others own. Good for nothing but to see that they are done.
    pub positions: BTreeMap<i32, i64>,
    /// The source has a newer incarnation.
    pub is_superseded: bool,
}

/// What is needed to be a member.
#[derive(Clone, Debug)]
pub struct Member {
    pub id: Uuid,
    pub pipeline: String,
    pub host: String,
    pub source: i32,
    pub settings: Postgres,
}

/// The task that renews; dropping this ends it, and with it the connection.
#[derive(Debug)]
pub struct Control {
    task: JoinHandle<()>,
    ownership: watch::Receiver<Ownership>,
    stop: Arc<Notify>,
}

impl Control {
    /// Becomes a member and keeps it so.
    pub async fn start(member: Member, client: Client) -> Result<Self, tokio_postgres::Error> {
        let first = renew(&member, &client).await?;
        let (sender, ownership) = watch::channel(first);
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut client = Some(client);
            for look in 0u64.. {
                tokio::select! {
                    () = stopped.notified() => return,
                    () = tokio::time::sleep(if look < FIRST_RENEWALS.0.into() { FIRST_RENEWALS.1 } else { RENEWAL }) => {}
                }
                if client.as_ref().is_none_or(Client::is_closed) {
                    client = postgres::connect(&member.settings, &member.pipeline).await.ok();
                }
                let renewed = match &client {
                    Some(connected) => renew(&member, connected).await.map_err(|error| postgres::describe(&error)),
                    None => Err("no connection".to_owned()),
                };
                match renewed {
                    Ok(ownership) => _ = sender.send(ownership),
                    Err(error) => {
                        tracing::debug!("cannot renew the membership: {error}");
                        client = None;
                        // The data connection may be gone as well, and where nothing comes nobody else would notice.
                        sender.send_modify(|_| ());
                    }
                }
            }
        });
        Ok(Self { task, ownership, stop })
    }

    /// Renews no more. Whoever leaves waits for it: a renewal on its way would make the member again.
    pub async fn stop(&mut self) {
        self.stop.notify_one();
        if !self.task.is_finished() {
            let _ = tokio::time::timeout(RENEWAL, &mut self.task).await;
        }
    }

    /// The last look at who owns what.
    pub fn ownership(&self) -> Ownership {
        self.ownership.borrow().clone()
    }

    /// Returns at each new look, also when it failed and showed nothing new.
    pub async fn changed(&mut self) -> Ownership {
        if self.ownership.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.ownership.borrow_and_update().clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn renew(member: &Member, client: &Client) -> Result<Ownership, tokio_postgres::Error> {
    offsets::renew_member(client, member.id, &member.pipeline, &member.host).await?;
    offsets::ownership(client, &member.pipeline, member.source).await
}
