//! A fan-out: one request to several servers at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

type Ask<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Requests under way, each with the number of its server. Dropping it cuts them short; the task
/// that owns it drives them, so a fan-out that is moved into another task goes on there.
pub(in crate::backend) struct FanOut<T> {
    asks: Vec<(usize, Ask<T>)>,
}

impl<T> FanOut<T> {
    pub(in crate::backend) fn new() -> Self {
        Self { asks: Vec::new() }
    }

    pub(in crate::backend) fn ask(
        &mut self,
        server: usize,
        ask: impl Future<Output = T> + Send + 'static,
    ) {
        self.asks.push((server, Box::pin(ask)));
    }

    /// How many answers are still to come.
    pub(in crate::backend) fn open(&self) -> usize {
        self.asks.len()
    }

    /// Whose answers are still to come.
    pub(in crate::backend) fn servers(&self) -> impl Iterator<Item = usize> {
        self.asks.iter().map(|(server, _)| *server)
    }

    /// The next answer, and whose it is; `None` when all are in.
    pub(in crate::backend) async fn next(&mut self) -> Option<(usize, T)> {
        poll_fn(|context| {
            for index in 0..self.asks.len() {
                let (server, ask) = &mut self.asks[index];
                let server = *server;
                if let Poll::Ready(answer) = ask.as_mut().poll(context) {
                    drop(self.asks.swap_remove(index));
                    return Poll::Ready(Some((server, answer)));
                }
            }
            if self.asks.is_empty() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }
}

impl<T: Send + 'static> FanOut<T> {
    /// Lets the answers that are still to come arrive behind the scenes.
    pub(in crate::backend) fn finish_behind(mut self) {
        if self.open() > 0 {
            tokio::spawn(async move { while self.next().await.is_some() {} });
        }
    }
}
