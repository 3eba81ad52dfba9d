"""Algorithms with the imports and idioms of classes written for DomainBed, from the papers' formulas."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

from domainbed import networks
from domainbed.algorithms import ERM, Algorithm
from domainbed.hparams import Hparam
from domainbed.lib import misc
from domainbed.lib.misc import (
    LARS,
    ErmPlusPlusMovingAvg,
    MovingAverage,
    Nonparametric,
    ParamDict,
    SupConLossLambda,
    l2_between_dicts,
    proj,
    random_pairs_of_minibatches,
    split_meta_train_test,
)


class Mixup(ERM):
    def update(self, minibatches, unlabeled=None):
        objective = 0
        for (xi, yi), (xj, yj) in random_pairs_of_minibatches(minibatches):
            lam = float(torch.rand(()))
            predictions = self.predict(lam * xi + (1 - lam) * xj)
            objective += lam * F.cross_entropy(predictions, yi) + (1 - lam) * F.cross_entropy(predictions, yj)
        objective /= len(minibatches)
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()
        return {"loss": objective.item()}


class MLDG(ERM):
    def update(self, minibatches, unlabeled=None):
        self.optimizer.zero_grad()
        objective = 0
        for (xi, yi), (xj, yj) in split_meta_train_test(minibatches, 1):
            inner_net = copy.deepcopy(self.network)
            inner_opt = torch.optim.Adam(inner_net.parameters(), lr=self.hparams["lr"])
            inner_obj = F.cross_entropy(inner_net(xi), yi)
            inner_opt.zero_grad()
            inner_obj.backward()
            inner_opt.step()
            for p, source in zip(self.network.parameters(), inner_net.parameters(), strict=True):
                p.grad = source.grad.data if p.grad is None else p.grad + source.grad.data
            objective += inner_obj.item() + F.cross_entropy(inner_net(xj), yj).item()
        self.optimizer.step()
        return {"loss": objective}


class Fish(Algorithm):
    HPARAMS = {"meta_lr": Hparam(0.5)}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super(Fish, self).__init__(input_shape, num_classes, num_domains, hparams)  # noqa: UP008
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.network = networks.WholeFish(input_shape, num_classes, hparams)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        self.optimizer_inner_state = None

    def create_clone(self, device):
        self.network_inner = networks.WholeFish(
            self.input_shape, self.num_classes, self.hparams, weights=self.network.state_dict()
        ).to(device)
        self.optimizer_inner = torch.optim.Adam(
            self.network_inner.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        if self.optimizer_inner_state is not None:
            self.optimizer_inner.load_state_dict(self.optimizer_inner_state)

    def fish(self, meta_weights, inner_weights, lr_meta):
        meta_weights = ParamDict(meta_weights)
        inner_weights = ParamDict(inner_weights)
        meta_weights += lr_meta * (inner_weights - meta_weights)
        return meta_weights

    def update(self, minibatches, unlabeled=None):
        self.create_clone(minibatches[0][0].device)
        for x, y in minibatches:
            loss = F.cross_entropy(self.network_inner(x), y)
            self.optimizer_inner.zero_grad()
            loss.backward()
            self.optimizer_inner.step()
        self.optimizer_inner_state = self.optimizer_inner.state_dict()
        meta_weights = self.fish(
            meta_weights=self.network.state_dict(),
            inner_weights=self.network_inner.state_dict(),
            lr_meta=self.hparams["meta_lr"],
        )
        self.network.reset_weights(meta_weights)
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)


class Fishr(Algorithm):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.num_domains = num_domains
        self.featurizer = networks.Featurizer(input_shape, self.hparams)
        self.classifier = networks.Classifier(self.featurizer.n_outputs, num_classes)
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.register_buffer("update_count", torch.tensor([0]))
        self.ema_per_domain = [MovingAverage(ema=0.9, oneminusema_correction=True) for _ in range(num_domains)]
        self._init_optimizer()

    def _init_optimizer(self):
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.hparams["lr"])

    def update(self, minibatches, unlabeled=None):
        variances, nll = [], 0
        for ema, (x, y) in zip(self.ema_per_domain, minibatches, strict=True):
            z = self.featurizer(x)
            logits = self.classifier(z)
            nll = nll + F.cross_entropy(logits, y) / len(minibatches)
            delta = logits.softmax(1) - F.one_hot(y, logits.shape[1])
            gradients = delta[:, :, None] * z[:, None, :]
            variances.append(ema.update({"weight": gradients.var(0), "bias": delta.var(0)}))
        mean = {name: torch.stack([v[name] for v in variances]).mean(0) for name in variances[0]}
        penalty = sum(l2_between_dicts(v, mean) for v in variances) / len(variances)
        if self.update_count == 3:
            self._init_optimizer()
        objective = nll + (100.0 if self.update_count >= 3 else 0.0) * penalty
        self.update_count += 1
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()
        return {"loss": objective.item(), "nll": nll.item(), "penalty": penalty.item()}

    def predict(self, x):
        return self.network(x)


class EQRM(ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams, dist=None):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))
        self.register_buffer("alpha", torch.tensor(0.75, dtype=torch.float64))
        self.dist = Nonparametric() if dist is None else dist

    def update(self, minibatches, unlabeled=None):
        env_risks = torch.cat([F.cross_entropy(self.network(x), y).reshape(1) for x, y in minibatches])
        if self.update_count < 3:
            loss = torch.mean(env_risks)
        else:
            self.dist.estimate_parameters(env_risks)
            loss = self.dist.icdf(self.alpha)
        if self.update_count == 3:
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.hparams["lr"] / 2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.update_count += 1
        return {"loss": loss.item()}


class ERMPlusPlus(Algorithm, ErmPlusPlusMovingAvg):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        Algorithm.__init__(self, input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, self.hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, self.hparams["nonlinear_classifier"]
        )
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.hparams["lr"], foreach=False)
        self.linear_optimizer = LARS(list(self.network[1].parameters()), lr=0.1, weight_decay=1e-4)
        self.lr_schedule = []
        self.lr_schedule_changes = 0
        self.count = 0
        ErmPlusPlusMovingAvg.__init__(self, self.network)
        self.sma_start_iter = 4

    def update(self, minibatches, unlabeled=None):
        optimizer = self.optimizer if self.count > 2 else self.linear_optimizer
        all_x = torch.cat([x for x, y in minibatches])
        all_y = torch.cat([y for x, y in minibatches])
        loss = F.cross_entropy(self.network(all_x), all_y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.update_sma()
        if not self.hparams["freeze_bn"]:
            self.network_sma.train()
            self.network_sma(all_x)
        self.count += 1
        self.lr_schedule.append(optimizer.param_groups[0]["lr"])
        return {"loss": loss.item()}

    def predict(self, x):
        self.network_sma.eval()
        return self.network_sma(x)


class URM(ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        ERM.__init__(self, input_shape, num_classes, num_domains, hparams)
        from domainbed.lib import wide_resnet

        assert type(self.featurizer) in [networks.MLP, networks.MNIST_CNN, wide_resnet.Wide_ResNet, networks.ResNet]
        self.featurizer.activation = nn.Tanh()
        self.discriminator = nn.Sequential(nn.Linear(self.featurizer.n_outputs, 20), nn.LeakyReLU(), nn.Linear(20, 1))
        self.discriminator_opt = torch.optim.Adam(self.discriminator.parameters(), lr=1e-3)

    def update(self, minibatches, unlabeled=None):
        all_x = torch.cat([x for x, y in minibatches])
        all_y = torch.cat([y for x, y in minibatches])
        z = self.featurizer(all_x)
        assert z.abs().max() < 1
        loss = F.cross_entropy(self.classifier(z), all_y) - 0.1 * F.logsigmoid(self.discriminator(z)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        noise = 2 * torch.rand_like(z) - 1
        logits = self.discriminator(torch.cat([noise, z.detach()]))
        d_loss = F.binary_cross_entropy_with_logits(logits, torch.cat([torch.ones(len(z), 1), torch.zeros(len(z), 1)]))
        self.discriminator_opt.zero_grad()
        d_loss.backward()
        self.discriminator_opt.step()
        return {"loss": loss.item(), "disc_loss": d_loss.item()}


class Transfer(ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.adv_classifier = networks.Classifier(self.featurizer.n_outputs, num_classes)
        self.adv_classifier.load_state_dict(self.classifier.state_dict())
        self.adv_opt = torch.optim.SGD(self.adv_classifier.parameters(), lr=0.1)

    def gap(self, minibatches):
        losses = [F.cross_entropy(self.adv_classifier(self.featurizer(x)), y) for x, y in minibatches]
        return max(losses) - min(losses)

    def update(self, minibatches, unlabeled=None):
        loss = sum(F.cross_entropy(self.predict(x), y) for x, y in minibatches) + self.gap(minibatches)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.adv_classifier.load_state_dict(self.classifier.state_dict())
        for _ in range(3):
            self.adv_opt.zero_grad()
            (-self.gap(minibatches)).backward()
            self.adv_opt.step()
            self.adv_classifier = proj(0.01, self.adv_classifier, self.classifier)
        assert misc.distance(self.adv_classifier, self.classifier) < 0.0101
        return {"loss": loss.item()}


class ADRMX(ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))
        self.scl_1 = SupConLossLambda(lamda=0.5)
        self.discriminator = networks.MLP(
            self.featurizer.n_outputs, num_domains, {"mlp_width": 16, "mlp_depth": 3, "mlp_dropout": 0.5}
        )
        self.disc_opt = torch.optim.Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))

    def update(self, minibatches, unlabeled=None):
        self.update_count += 1
        all_x = torch.cat([x for x, y in minibatches])
        all_y = torch.cat([y for x, y in minibatches])
        domains = torch.cat([torch.full((len(x),), i, dtype=torch.int64) for i, (x, y) in enumerate(minibatches)])
        z = self.featurizer(all_x)
        disc_loss = F.cross_entropy(self.discriminator(z), domains)
        if self.update_count % 3 < 2:
            self.disc_opt.zero_grad()
            disc_loss.backward()
            self.disc_opt.step()
            return {"loss_disc": disc_loss.item()}
        loss = F.cross_entropy(self.classifier(z), all_y) - 0.75 * disc_loss + self.scl_1(z, all_y, domains)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


class ARM(ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__((input_shape[0] + 1, *input_shape[1:]), num_classes, num_domains, hparams)
        self.context_net = networks.ContextNet(input_shape)
        self.optimizer.add_param_group({"params": list(self.context_net.parameters())})

    def predict(self, x):
        context = self.context_net(x).mean(0, keepdim=True).expand(len(x), -1, -1, -1)
        return self.network(torch.cat([x, context], dim=1))


CLASSES = [Mixup, MLDG, Fish, Fishr, EQRM, ERMPlusPlus, URM, Transfer, ADRMX, ARM]
