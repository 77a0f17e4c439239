"""The breaks of DecentLaM: its rules, the graphs, their colourings and the check of their stability."""

from tests.mutants.mutant import Mutant

_RULES = "test_decentlam_rules.py::{}"
_RULE, _GRAPH, _FIXED, _SCHEDULES = (
    "rules/decentlam.py",
    "topology/graph.py",
    "topology/fixed.py",
    "topology/schedules.py",
)
_COLOURING, _SPECTRUM, _STABILITY = "topology/edge_colouring.py", "topology/spectrum.py", "topology/stability.py"
_SIMULATION = "topology/simulation.py"

_EXCHANGE, _NODES, _UPDATES = "distribute/exchange.py", "distribute/nodes.py", "distribute/node_updates.py"
_TRAINED = "test_decentralized.py::test_every_node_has_the_weights_of_the_formulas[{}-DecentLaM]"

DECENTLAM = (
    Mutant(
        "decentlam_disagreement_outside_the_momentum",
        _RULE,
        "momentum * displacement + (learning_rate * gradient + disagreement)\n    return displacement, displacement",
        "momentum * displacement + learning_rate * gradient\n    return displacement + disagreement, displacement",
        (_RULES.format("test_bracket_is_the_corrected_gradient_of_the_paper"),),
    ),
    Mutant(
        "decentlam_rate_outside_the_displacement",
        _RULE,
        "momentum * displacement + (learning_rate * gradient + disagreement)\n    return displacement, displacement",
        "momentum * displacement + (gradient + disagreement)\n    return learning_rate * displacement, displacement",
        (_RULES.format("test_fact_3_one_node_is_momentum_sgd_bit_for_bit[DecentLaM-float32]"),),
    ),
    Mutant(
        "dmsgd_message_without_the_momentum",
        _RULE,
        "weight - _local_displacement(gradient, displacement, learning_rate, momentum)",
        "weight - learning_rate * gradient",
        (_RULES.format("test_dmsgd_averages_what_each_node_would_do"),),
    ),
    Mutant(
        "uniform_weights_on_irregular_graphs",
        _FIXED,
        "1 / (1 + max(neighbours[i], neighbours[j]))",
        "1 / (1 + min(neighbours[i], neighbours[j]))",
        ("test_topology.py::test_weights_of_a_star_count_no_node_more_than_another",),
    ),
    Mutant(
        "ring_of_two_counts_its_neighbour_twice",
        _FIXED,
        "unique = {(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]}",
        "unique = [(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]]",
        ("test_topology.py::test_one_node_and_two_nodes",),
    ),
    Mutant(
        "exponential_beyond_half_the_circle",
        _FIXED,
        "if 2 ** (power + 1) <= nodes]",
        "if 2**power < nodes]",
        ("test_topology.py::test_edges_of_the_fixed_graphs[7]",),
    ),
    Mutant(
        "grid_of_any_divisor",
        _FIXED,
        "range(1, math.isqrt(nodes) + 1)",
        "range(1, nodes + 1)",
        ("test_topology.py::test_facts_about_the_graphs_of_eight",),
    ),
    Mutant(
        "period_by_rounding_down",
        _SCHEDULES,
        "range((nodes - 1).bit_length())",
        "range(nodes.bit_length() - 1)",
        ("test_topology.py::test_one_peer_is_exclusive_or[5]",),
    ),
    Mutant(
        "random_matchings_of_the_global_stream",
        _SCHEDULES,
        "random.permutation(nodes).tolist()",
        "np.random.permutation(nodes).tolist()",
        ("test_topology.py::test_random_matchings_come_from_the_seed",),
    ),
    Mutant(
        "disconnected_graph_is_taken",
        _GRAPH,
        "if parts > 1:",
        "if parts > nodes:",
        ("test_topology.py::test_disconnected",),
    ),
    Mutant(
        "schedule_stays_in_its_first_step",
        _GRAPH,
        "rows, phase = np.zeros((self.nodes, self.nodes)), np.arange(self.nodes), step % self.period",
        "rows, phase = np.zeros((self.nodes, self.nodes)), np.arange(self.nodes), 0",
        ("test_topology.py::test_fact_8_one_peer_averages_exactly_and_only_for_powers_of_two",),
    ),
    Mutant(
        "asymmetric_matrix_is_averaged",
        _FIXED,
        "        _raise_asymmetric(matrix)\n",
        "        pass\n",
        ("test_topology.py::test_fact_7_asymmetric_matrix_is_refused_with_what_it_would_do",),
    ),
    Mutant(
        "one_colour_too_many",
        _COLOURING,
        "_search(nodes, edges, degree) if",
        "_search(nodes, edges, degree + 1) if",
        ("test_edge_colouring.py::test_random_graphs",),
    ),
    Mutant(
        "uncoloured_edge_walks_on_two_colours_only",
        _COLOURING,
        "colour = int(random.integers(len(self._colours)))",
        "colour = self._missing(v)[0]",
        ("test_edge_colouring.py::test_number_of_matchings",),
    ),
    Mutant(
        "fan_turned_to_its_end",
        _COLOURING,
        "end = next(place for place, node in enumerate(fan) if colour not in self._across[node])",
        "end = len(fan) - 1",
        ("test_edge_colouring.py::test_one_colour_more_is_enough_without_a_search",),
    ),
    Mutant(
        "stability_of_the_displacement_with_the_wrong_sign",
        _SPECTRUM,
        "position - velocity",
        "position + velocity",
        ("test_stability.py::test_two_matchings_in_turn",),
    ),
    Mutant(
        "stability_of_averaging_instead_of_momentum",
        _STABILITY,
        "return momentum_growth(matrices, momentum)",
        "return averaging_growth(matrices)",
        ("test_stability.py::test_fact_7_what_is_accepted_and_what_is_not",),
    ),
    Mutant(
        "growth_of_a_period_instead_of_a_step",
        _SPECTRUM,
        "(np.log(radius) + log_scale) / steps",
        "np.log(radius) + log_scale",
        ("test_stability.py::test_one_peer_exponential",),
    ),
    Mutant(
        "simulation_mixes_weights_instead_of_messages",
        _SIMULATION,
        "disagreement(topology, messages, step)\n",
        "disagreement(topology, weights, step)\n",
        ("test_simulation.py::test_fact_4_table",),
    ),
    Mutant(
        "decay_after_the_message",
        _SIMULATION,
        '_same_shape("gradients", gradients(weights, step), weights) + weight_decay * weights',
        '_same_shape("gradients", gradients(weights, step), weights)',
        ("test_simulation.py::test_weight_decay_and_schedule_enter_as_in_the_transcription",),
    ),
    Mutant(
        "gradients_of_nodes_divided_by_their_number",
        _UPDATES,
        "gradient * replica_count() for gradient",
        "gradient for gradient",
        (_TRAINED.format("ring"),),
    ),
    Mutant(
        "gradients_of_nodes_summed",
        _UPDATES,
        "        exchange = self._exchange_of_step()\n        if exchange is None:\n            super()._backend",
        "        exchange = None\n        if exchange is None:\n            super()._backend",
        (_TRAINED.format("ring"),),
    ),
    Mutant(
        "schedule_stands_still",
        _EXCHANGE,
        "phase = tf.cast(step, tf.int64) % self.topology.period",
        "phase = tf.cast(step, tf.int64) * 0",
        (_TRAINED.format("ring_matchings"),),
    ),
    Mutant(
        "partner_gets_what_was_not_rounded",
        _EXCHANGE,
        "self._mix(sent, tf.cast(sent, message.dtype), phase)",
        "self._mix(sent, message, phase)",
        ("test_exchange.py::test_rounded_messages_cancel",),
    ),
    Mutant(
        "pairs_of_a_tpu_summed_over_all",
        _EXCHANGE,
        "group_assignment=groups",
        "group_assignment=[[node for group in groups for node in group]]",
        ("test_exchange.py::test_on_a_tpu_the_pairs_of_a_matching_are_summed_together[ring]",),
    ),
    Mutant(
        "message_that_is_not_finite_is_sent",
        _EXCHANGE,
        "tf.reduce_all(tf.math.is_finite(message))",
        "tf.reduce_any(tf.math.is_finite(message))",
        ("test_exchange.py::test_a_message_that_is_not_finite_is_not_sent",),
    ),
    Mutant(
        "nodes_keep_the_average_after_reading",
        _NODES,
        "        nodes.put_back(own)\n",
        "        pass\n",
        ("test_decentralized.py::test_an_error_while_reading_gives_the_nodes_their_weights_back",),
    ),
    Mutant(
        "nodes_resume_from_the_average",
        "callbacks/backup.py",
        "        write_nodes(self.model, {node: _arrays(own) for node, own in paths.items()})\n",
        "",
        ("test_decentralized.py::test_resumed_nodes_go_on_with_their_own_weights",),
    ),
    Mutant(
        "workers_forget_the_weight_of_an_edge",
        _EXCHANGE,
        "return total + weight * found",
        "return total + found",
        ("test_decentralized_workers.py::test_every_worker_has_the_weights_of_its_node[path_DecentLaM]",),
    ),
)
