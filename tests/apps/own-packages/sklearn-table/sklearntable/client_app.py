"""The client: linear regression on its own table."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error

app = ClientApp()


def table(context: Context) -> tuple[np.ndarray, np.ndarray]:
    rows = np.loadtxt(str(context.run_config["table"]), delimiter=",", skiprows=1)
    return rows[:, :1], rows[:, 1]


@app.train()
def train(message: Message, context: Context) -> Message:
    x, y = table(context)
    line = LinearRegression().fit(x, y)
    metrics = MetricRecord({"num-examples": len(y), "fit": float(line.score(x, y))})
    content = {"arrays": ArrayRecord([line.coef_, np.array([line.intercept_])]), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    x, y = table(context)
    slope, intercept = message.content["arrays"].to_numpy_ndarrays()
    error = mean_squared_error(y, x[:, 0] * slope + intercept)
    metrics = MetricRecord({"num-examples": len(y), "error": float(error)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
