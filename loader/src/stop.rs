//! Stopping: the first signal commits the open batch and leaves, the second leaves at once.

use tokio::sync::watch;

/// Told by signals, or by a test.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<u32>);

/// Tells [`Stop`].
#[derive(Debug)]
pub struct Stopper(watch::Sender<u32>);

/// A pair of both.
pub fn channel() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(0);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    pub fn signal(&self) {
        self.0.send_modify(|count| *count += 1);
    }
}

impl Stop {
    /// Returns once `count` signals have come; never, if nobody can send any more.
    pub async fn signalled(&mut self, count: u32) {
        if self.0.wait_for(|signals| *signals >= count).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub fn is_signalled(&self) -> bool {
        *self.0.borrow() > 0
    }
}

/// A stop that SIGTERM and SIGINT tell.
pub fn on_signals() -> std::io::Result<Stop> {
    use tokio::signal::unix::{SignalKind, signal};
    let (stopper, stop) = channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stopper.signal();
        }
    });
    Ok(stop)
}
